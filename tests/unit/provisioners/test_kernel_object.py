"""The arguments of `roost.start_kernel`, with a scripted service, and the results of executed code."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

import roost
from kit.fakes.service import FakeService, fake_service
from kit.jupyter.kernelspecs import kernelspecs
from roost.provisioners import kernel_object
from roost.provisioners.execution import add_output, build_result
from roost.provisioners.kernel_object import await_answer
from roost.scheduler.client.client import disconnect
from roost.scheduler.messages import StartKernel
from roost.testing.deadlines import allow_s

REFUSAL = roost.NoNodeEver("no node is that large")
"""The answer to every start: the scripted service has no real kernels to start."""


@pytest.fixture
def service(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "connections"))
    with fake_service() as service:
        service.answers["start"] = REFUSAL
        yield service
        disconnect()


def refused_start(service: FakeService, name: str = "roosted", **arguments: Any) -> StartKernel:
    """Call `roost.start_kernel`, which is refused, and return the start that the service received."""
    with pytest.raises(roost.NoNodeEver):
        roost.start_kernel(name, **arguments)
    start = service.called("start")[-1]
    assert isinstance(start, StartKernel)
    return start


def test_arguments_override_the_kernelspecs_options(service: FakeService, tmp_path: Path) -> None:
    kernelspecs(tmp_path, config={"cpus": 4, "memory": "1GiB"})
    start = refused_start(service, cpus=2, gpus=0.5, labels={"zone": "a"}, policy=None, timeout_s=7)
    assert start.request == roost.Request(
        cpus=2, memory_bytes=1 << 30, gpus=0.5, labels={"zone": "a"}, policy=""
    )
    assert start.launch_timeout_s <= 7


def test_a_plain_kernelspec_is_started_through_roost(service: FakeService, tmp_path: Path) -> None:
    kernelspecs(tmp_path, metadata={"kernel_provisioner": {}})
    assert refused_start(service, cpus=1).request.cpus == 1


def test_ctrl_c_before_a_call_has_begun(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python reports a coroutine that is made and never runs. That would fail this test."""
    kernelspecs(tmp_path)
    monkeypatch.setattr(kernel_object, "_get_loop", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        roost.start_kernel("roosted")
    assert service.called("start") == []


def test_the_environment_and_the_folder(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNEL_CPUS", "3")
    monkeypatch.setenv("KERNEL_WORKING_DIR", "/")
    monkeypatch.setenv("KERNEL_USERNAME", "ada")
    kernelspecs(tmp_path, env={"OWN": "1"})
    start = refused_start(service, env={"MINE": "a$PATH$$"}, cwd=tmp_path)
    assert (start.env["OWN"], start.env["MINE"], start.env["PATH"]) == ("1", "a$PATH$$", os.environ["PATH"])
    assert (start.cwd, start.owner.user, start.request.cpus) == (str(tmp_path), "ada", 0)


def test_another_backend_does_not_get_the_kernelspecs_backend_options(
    service: FakeService, tmp_path: Path
) -> None:
    kernelspecs(tmp_path, config={"backend": "ray", "backend_options": {"address": "a:1"}, "cpus": 1})
    assert refused_start(service, backend="local").request.cpus == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"cpu": 1}, "no argument of start_kernel named cpu: did you mean cpus"),
        ({"launch_timeout": 1}, "no argument of start_kernel named launch_timeout"),
        ({"gpus": "many"}, "gpus must be a number; got 'many'"),
        ({"memory": "8 elephants"}, "memory = "),
        ({"timeout_s": 0}, "timeout_s = 0 is not possible"),
        ({"backend": "nope"}, "no backend 'nope'"),
        ({"backend_options": 3}, "backend_options = 3"),
        ({"env": 3}, "env = 3"),
        ({"env": {"A": 1}}, "env is not an object of names and texts"),
        ({"env": {"A=B": "1"}}, "env has a variable named 'A=B', which is not possible"),
        ({"env": {"": "1"}}, "env has a variable named '', which is not possible"),
        ({"env": {"KERNEL_CPUS": "-3"}}, "KERNEL_CPUS must not be negative"),
        ({"cwd": "/no/such/folder"}, "cwd = '/no/such/folder' is not a folder"),
        ({"cwd": 3}, "cwd = 3 is not a folder's path"),
        ({"kernel_name": ["roosted"]}, r"kernel_name = \['roosted'\] is not a kernelspec's name"),
        ({"kernel_name": "nope"}, "no kernelspec 'nope': choose one of .*roosted"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    service: FakeService, tmp_path: Path, arguments: dict[str, Any], problem: str
) -> None:
    kernelspecs(tmp_path)
    with pytest.raises(roost.ConfigError, match=problem) as raised:
        roost.start_kernel(**{"kernel_name": "roosted", **arguments})
    assert "\n" not in str(raised.value)
    assert service.called("start") == []


async def test_in_an_event_loop_nothing_starts_before_the_await(service: FakeService, tmp_path: Path) -> None:
    kernelspecs(tmp_path)
    kernel = roost.start_kernel("roosted")
    with pytest.raises(RuntimeError, match="not started"):
        print(kernel.node_id)
    assert service.called("start") == []
    with pytest.raises(roost.NoNodeEver):
        await kernel
    with pytest.raises(roost.NoNodeEver):
        async with roost.start_kernel("roosted"):
            pass
    assert len(service.called("start")) == 2
    assert list((tmp_path / "connections").glob("*")) == []


def message(kind: str, **content: Any) -> dict[str, Any]:
    return {"header": {"msg_type": kind}, "content": content}


def test_outputs_are_those_of_a_notebook() -> None:
    outputs: list[dict[str, Any]] = []
    for each in (
        message("status", execution_state="busy"),
        message("stream", name="stdout", text="gone"),
        message("clear_output", wait=False),
        message("stream", name="stdout", text="a"),
        message("stream", name="stdout", text="b"),
        message("stream", name="stderr", text="e"),
        message("display_data", data={"image/png": "x"}, metadata={}, transient={}),
        message("execute_result", execution_count=1, data={"text/plain": "2"}, metadata={}, transient={}),
        message("stream", name="stdout", text="c"),
    ):
        add_output(outputs, each)
    result = build_result(outputs, {"status": "ok"})
    assert (result.text, result.stdout, result.stderr, result.error) == ("2", "abc", "e", None)
    assert result.outputs[0] == {"output_type": "stream", "name": "stdout", "text": "ab"}
    assert result.outputs[2] == {"output_type": "display_data", "data": {"image/png": "x"}, "metadata": {}}
    assert [output["output_type"] for output in result.outputs[3:]] == ["execute_result", "stream"]


def test_the_text_of_a_value_that_the_kernel_displays_is_the_results_text() -> None:
    """IRkernel sends no `execute_result`."""
    outputs: list[dict[str, Any]] = []
    add_output(outputs, message("display_data", data={"text/plain": "[1] 41"}, metadata={}))
    add_output(outputs, message("display_data", data={"text/plain": "[1] 42"}, metadata={}))
    assert build_result(outputs, {"status": "ok"}).text == "[1] 42"
    add_output(outputs, message("execute_result", execution_count=1, data={"text/plain": "2"}, metadata={}))
    assert build_result(outputs, {"status": "ok"}).text == "2"


def test_fields_that_a_kernel_leaves_out_are_empty() -> None:
    outputs: list[dict[str, Any]] = []
    add_output(outputs, {"header": {"msg_type": "clear_output"}, "content": None})
    add_output(outputs, message("stream", text="a"))
    add_output(outputs, message("stream", name=None, text="b"))
    add_output(outputs, message("display_data", data={"text/plain": "x"}, metadata=None))
    add_output(outputs, message("display_data", data={"text/plain": "y"}))
    outputs[-1]["metadata"]["mine"] = True
    add_output(outputs, message("display_data", data=None))
    add_output(outputs, message("error", ename="E", evalue=None))
    assert outputs == [
        {"output_type": "stream", "name": "stdout", "text": "ab"},
        {"output_type": "display_data", "data": {"text/plain": "x"}, "metadata": {}},
        {"output_type": "display_data", "data": {"text/plain": "y"}, "metadata": {"mine": True}},
        {"output_type": "display_data", "data": {}, "metadata": {}},
        {"output_type": "error", "ename": "E", "evalue": "", "traceback": []},
    ]
    error = build_result([], {"status": "error", "ename": "E", "evalue": None, "traceback": None}).error
    assert error is not None
    assert (error.name, error.value, error.traceback) == ("E", "", "")
    assert build_result([], {}).error is None


def test_an_error_is_part_of_the_result() -> None:
    reply = {"status": "error", "ename": "E", "evalue": "why", "traceback": ["one", "two"]}
    error = build_result([], reply).error
    assert error is not None
    assert (str(error), error.name, error.value, error.traceback) == ("E: why", "E", "why", "one\ntwo")
    again = pickle.loads(pickle.dumps(error))
    assert (again.name, again.fields) == (error.name, error.fields)
    assert build_result([], {"status": "aborted"}).error is not None


class Restarted:
    """A client of a kernel that was restarted. The first request is lost, and old output is unread."""

    def __init__(self) -> None:
        self.asked = 0
        self.outputs: asyncio.Queue[str] = asyncio.Queue()
        self.outputs.put_nowait("of the old process")

    def kernel_info(self) -> str:
        self.asked += 1
        if self.asked > 1:
            self.outputs.put_nowait(str(self.asked))
        return str(self.asked)

    async def get_iopub_msg(self) -> dict[str, Any]:
        return {"parent_header": {"msg_id": await self.outputs.get()}}


async def test_output_of_the_process_before_a_restart_is_no_answer() -> None:
    client = Restarted()
    await asyncio.wait_for(await_answer(cast("Any", client)), allow_s(60))
    assert client.asked > 1
