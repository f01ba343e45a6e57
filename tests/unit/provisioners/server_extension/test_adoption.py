"""The search for kernels of an earlier server: which kernels it finds, and when."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from traitlets.config import Config

from kit.fakes.service import FakeService
from roost.launchers.protocol.shared_values import Owner
from roost.placement.model import Request
from roost.provisioners.kernel_json import PROVISIONER
from roost.provisioners.server_extension import adoption
from roost.provisioners.server_extension.adoption import FoundKernel, KernelFinder
from roost.provisioners.server_extension.server_state import ServerState
from roost.scheduler.client.client import Client
from roost.scheduler.errors import BackendUnavailable
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import allow_s

OURS = Owner(user="ada", application="jupyter", host="here", pid=7, server="ours")
UNKNOWN = Owner(user="ada")


class OwnPlace:
    """A server all of whose kernels run as the server's user."""

    def list_clients(self, kernel_name: str, own: Client) -> Sequence[Client]:
        return [own]

    def may_have(self, client: Client, kernel_id: str) -> bool:
        return True


@pytest.fixture
def finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelFinder:
    """Return the finder of the server `ours`. The kernelspecs `roosted` and `python3` are installed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(adoption, "_PAUSE_S", 0.0)
    monkeypatch.setattr(adoption, "_ANSWER_S", allow_s(60))
    folder = tmp_path / "kernels" / "roosted"
    folder.mkdir(parents=True)
    provisioner = {"provisioner_name": PROVISIONER, "config": {}}
    spec = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "roosted",
        "language": "python",
        "metadata": {"kernel_provisioner": provisioner},
    }
    (folder / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")])
    return KernelFinder(specs, Config(), ServerState("ours"), logging.getLogger("roost"), OwnPlace())


def kernel(kernel_id: str, owner: Owner) -> Kernel:
    return Kernel(
        id=kernel_id,
        launch_id="1",
        state="running",
        owner=owner,
        request=Request(),
        node_id="n1",
        kernel_name="roosted",
    )


def page(*kernels: Kernel, unreachable: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"kernels": kernels, "more": False, "unreachable": unreachable}


async def find(finder: KernelFinder) -> tuple[list[str], list[list[str]]]:
    """Return the ids of the kernels that were found at once, and of those in each later answer."""
    late: list[list[str]] = []

    async def adopt(found: list[FoundKernel]) -> None:
        late.append([each.kernel_id for each in found])

    at_once = [each.kernel_id for each in await finder.find()]
    await finder.find_late(adopt)
    return at_once, late


def answer(service: FakeService, *answers: dict[str, Any] | Exception) -> None:
    remaining = iter(answers)

    def give(_: Any) -> dict[str, Any]:
        given = next(remaining)
        if isinstance(given, Exception):
            raise given
        return given

    service.answers["kernels"] = give


async def test_the_kernels_of_this_servers_name_are_found(service: FakeService, finder: KernelFinder) -> None:
    answer(service, page(kernel("a", OURS), kernel("b", replace(OURS, server="theirs"))))
    assert await find(finder) == (["a"], [])


async def test_kernels_of_a_server_that_has_ended_are_named_once(
    service: FakeService, finder: KernelFinder, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = replace(OURS, server="theirs", can_adopt=True)
    left = [replace(kernel(name, theirs), is_held=False) for name in "bc"]
    held = kernel("d", replace(OURS, server="alive"))
    answer(service, page(*left, held), page(*left, held))
    for _ in range(2):
        assert await finder.find() == []
    (said,) = [each for each in caplog.messages if "has ended" in each]
    assert said.startswith("roost: 2 kernels of your server 'theirs' live, which has ended.")
    assert said.endswith("`roost stop --server 'theirs'` ends them.")


async def test_a_kernel_of_another_world_is_named_once_with_its_end(
    service: FakeService,
    finder: KernelFinder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as job:
        job.setattr(finder._state, "_world", "0ddba11f")
        finder._state.note("k-1", name="roosted")
    finder._state.note("k-2", name="roosted")
    answer(service, page(), page(), page(), page())
    for _ in range(2):
        assert [each.kernel_id for each in await finder.find()] == ["k-2"]
    (said,) = [each for each in caplog.messages if "another world" in each]
    assert said.startswith("roost: kernel k-1 is not adopted: it is in another world of yours")
    assert said.endswith("`ROOST_SERVICE_NAME=0ddba11f roost stop k-1` ends it.")


@pytest.mark.parametrize(
    ("incomplete", "said"),
    [
        (page(kernel("a", OURS), unreachable=("n1", "n2")), "these agents are unreachable: n1, n2"),
        (
            page(kernel("a", OURS), kernel("b", UNKNOWN)),
            "no agent has reported yet who owns these kernels: b",
        ),
    ],
)
async def test_an_incomplete_answer_is_asked_for_again(
    service: FakeService,
    finder: KernelFinder,
    caplog: pytest.LogCaptureFixture,
    incomplete: dict[str, Any],
    said: str,
) -> None:
    """Each kernel is found once, as soon as its agent has reported its owner."""
    complete = page(kernel("a", OURS), kernel("b", OURS))
    answer(service, incomplete, incomplete, complete)
    assert await find(finder) == (["a"], [[], ["b"]])
    assert caplog.messages == [f"roost: not all kernels of roosted are known yet: {said}"]


async def test_a_scheduler_that_does_not_answer_is_asked_again(
    service: FakeService, finder: KernelFinder, caplog: pytest.LogCaptureFixture
) -> None:
    away = BackendUnavailable("Ray is away")
    answer(service, away, away, page(kernel("a", OURS)))
    assert await find(finder) == ([], [[], ["a"]])
    assert ["Ray is away" in message for message in caplog.messages] == [True]


async def test_a_scheduler_that_never_answers_is_not_asked_for_ever(
    service: FakeService, finder: KernelFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adoption, "_TRIES", 3)
    service.answers["kernels"] = BackendUnavailable("Ray is away")
    assert await find(finder) == ([], [[], [], []])
