"""The result of code that a kernel has executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.scheduler.errors import ExecutionError

_FIELDS = {
    "stream": ("name", "text"),
    "display_data": ("data", "metadata"),
    "execute_result": ("execution_count", "data", "metadata"),
    "error": ("ename", "evalue", "traceback"),
}
"""The kinds of output in a notebook, each with the fields that are copied from the kernel's message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of executed code.

    `outputs` has the outputs in the form of nbformat. `error` is the error that the code raised, or None.
    """

    outputs: list[dict[str, Any]] = field(default_factory=list)
    error: ExecutionError | None = None

    @property
    def text(self) -> str:
        """The value of the last expression as text; empty if it has none."""
        values = [output["data"] for output in self.outputs if output["output_type"] == "execute_result"]
        return str(values[-1].get("text/plain", "")) if values else ""

    @property
    def stdout(self) -> str:
        """The text that the code wrote to its standard output."""
        return "".join(output["text"] for output in self.outputs if output.get("name") == "stdout")

    @property
    def stderr(self) -> str:
        """The text that the code wrote to its standard error."""
        return "".join(output["text"] for output in self.outputs if output.get("name") == "stderr")


def add_output(outputs: list[dict[str, Any]], message: Mapping[str, Any]) -> None:
    """Add the output in an IOPub message to `outputs`, and ignore messages without an output.

    Further text of the same stream is appended to the last output. `clear_output` empties `outputs`.
    """
    kind, content = message["header"]["msg_type"], message["content"]
    if kind == "clear_output":
        outputs.clear()
    elif kind == "stream" and outputs and outputs[-1].get("name") == content["name"]:
        outputs[-1]["text"] += content["text"]
    elif kind in _FIELDS:
        outputs.append({"output_type": kind, **{name: content[name] for name in _FIELDS[kind]}})


def build_result(outputs: list[dict[str, Any]], reply: Mapping[str, Any]) -> Result:
    """Return a result with these outputs, and with the error in `reply`, the content of the `execute_reply`."""
    if reply["status"] == "ok":
        return Result(outputs=outputs)
    name, value = reply.get("ename") or "Aborted", reply.get("evalue", "")
    traceback = "\n".join(reply.get("traceback", ()))
    error = ExecutionError(f"{name}: {value}", name=name, value=value, traceback=traceback)
    return Result(outputs=outputs, error=error)
