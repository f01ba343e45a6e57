"""The result of code that a kernel has executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.scheduler.errors import ExecutionError
from roost.scheduler.messages import read_content

_OUTPUTS = ("stream", "display_data", "execute_result", "error")
"""The kinds of output in a notebook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of executed code.

    `outputs` has the outputs in the form of nbformat. `error` is the error that the code raised, or None.
    """

    outputs: list[dict[str, Any]] = field(default_factory=list)
    error: ExecutionError | None = None

    @property
    def text(self) -> str:
        """The value of the last expression as text; empty if it has none.

        Some kernels, such as R's, display the value instead. Without a value, this is therefore the text of the
        last `display_data`.
        """
        for kind in ("execute_result", "display_data"):
            values = [output["data"] for output in self.outputs if output["output_type"] == kind]
            if values:
                return str(values[-1].get("text/plain", ""))
        return ""

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
    kind = message["header"]["msg_type"]
    if kind == "clear_output":
        outputs.clear()
    elif kind in _OUTPUTS:
        output = read_content(kind, message["content"])
        if kind == "stream" and outputs and outputs[-1].get("name") == output["name"]:
            outputs[-1]["text"] += output["text"]
        else:
            outputs.append({"output_type": kind, **output})


def build_result(outputs: list[dict[str, Any]], reply: object) -> Result:
    """Return a result with these outputs, and with the error in `reply`, the content of the `execute_reply`."""
    if not isinstance(reply, dict) or reply.get("status", "ok") == "ok":
        return Result(outputs=outputs)
    content = read_content("error", reply)
    name, value = content["ename"] or "Aborted", content["evalue"]
    traceback = "\n".join(content["traceback"])
    error = ExecutionError(f"{name}: {value}", name=name, value=value, traceback=traceback)
    return Result(outputs=outputs, error=error)
