"""roost shows the reason within YARN's message, without the text that YARN writes around it."""

from __future__ import annotations

import pytest

from roost.scheduler.backends.node_archive import advise_python
from roost.scheduler.backends.yarn.master.messages import Container, Resources
from roost.scheduler.backends.yarn.reasons import (
    describe_application,
    describe_end,
    describe_wait,
    explain_failure,
    is_node_lost,
)

FAILED = """\
Application application_1_0002 failed 2 times in previous 60000 milliseconds due to AM Container for appattempt_1_0002_000002 exited with  exitCode: 1
Failing this attempt.Diagnostics: [2026-11-21 07:58:57.690]Exception from container-launch.
Container id: container_1_0002_02_000001
Exit code: 1

[2026-11-21 07:58:57.717]Container exited with a non-zero exit code 1. Error file: prelaunch.err.
Last 4096 bytes of prelaunch.err :
Last 4096 bytes of stderr :
Traceback (most recent call last):
ModuleNotFoundError: No module named 'zmq'

For more detailed output, check the application tracking page: http://rm:8088/cluster/app/application_1_0002 Then click on links to logs of each attempt.
. Failing the application."""  # noqa: E501
"""A message of Hadoop 3.4.2."""


INSTALL = "install ipykernel into it, or set the option python to a Python that has ipykernel"
FORGOTTEN = "Container container_1_0002_01_000002 was running but not reported from n1:8041"
"""A message of Hadoop 3.4.2, after a NodeManager was started again without recovery."""


def ended(status: int, diagnostics: str = "") -> Container:
    resources = Resources(memory_mb=1024, vcores=1)
    return Container(
        number=1, lease="", state="ended", resources=resources, node="n1", exit_status=status,
        diagnostics=diagnostics,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "diagnostics", "reason", "is_final"),
    [
        (-100, "Container released on a *lost* node", "n1 does not answer YARN any more, or has left", False),
        (-100, FORGOTTEN, "the NodeManager of n1 was started again and has forgotten its container", False),
        (-102, "Container preempted by scheduler", "YARN gave its resources to others (preemption)", False),
        (-104, "running beyond physical memory limits", "its container ran out of memory", False),
        (
            127,
            "",
            "/opt/python cannot be run on n1: set the option python to a Python that has ipykernel",
            True,
        ),
        (
            1,
            "No module named 'zmq'",
            f"/opt/python on n1 cannot run roost's agent (No module named 'zmq'): {INSTALL}",
            True,
        ),
        (3, "Exit code: 3\nRuntimeError: no", "its agent ended with exit status 3 (RuntimeError: no)", False),
    ],
)
def test_the_end_of_a_container(status: int, diagnostics: str, reason: str, is_final: bool) -> None:
    assert describe_end(ended(status, diagnostics), "/opt/python") == (reason, is_final)


def test_a_node_that_is_lost_because_of_its_trouble() -> None:
    lost = ended(-100, "Container released on a *lost* node")
    assert describe_end(lost, "python3", "is unhealthy") == (f"{lost.node} is unhealthy", False)


def test_a_released_container_is_not_on_a_lost_node() -> None:
    assert not is_node_lost(ended(-100, "Container released by application"))


def test_the_processes_of_a_forgotten_container_may_live_on() -> None:
    assert is_node_lost(ended(-100, FORGOTTEN))


def test_an_application_that_fails_names_its_own_last_words() -> None:
    failed = {"queue": "lab", "state": "FAILED", "diagnostics": FAILED}
    assert explain_failure(failed, "/opt/python") == (
        "/opt/python on the nodes cannot run roost's application master (ModuleNotFoundError: No module named 'zmq'): "
        "install ipykernel into it, or set the option python to a Python that has ipykernel "
        "(c.RoostYarnBackend.python)."
    )


def test_an_application_that_fails_without_a_word_names_its_log() -> None:
    said = "\n".join(line for line in FAILED.splitlines() if "Error" not in line or "Error file" in line)
    said = said.replace("Traceback (most recent call last):\n", "")
    failed = {"id": "application_1_0002", "queue": "lab", "state": "FAILED", "diagnostics": said}
    assert "yarn logs -applicationId application_1_0002" in explain_failure(failed, "/opt/python")


def test_an_application_that_was_killed_names_the_user() -> None:
    killed = {
        "queue": "lab",
        "state": "KILLED",
        "diagnostics": "Application application_1_2 was killed by user ada",
    }
    assert explain_failure(killed, "python3") == (
        "YARN has ended roost's application in queue lab: Application application_1_2 was killed by user ada."
    )


def test_an_unknown_queue_is_named() -> None:
    said = "Application application_1_0003 submitted by user root to unknown queue: nosuch"
    assert explain_failure({"queue": "nosuch", "state": "FAILED", "diagnostics": said}, "python3") == (
        "YARN has no queue nosuch: name another one (option queue)."
    )


def test_an_exhausted_share_of_application_masters_is_named() -> None:
    said = (
        "Application is added to the scheduler and is not yet activated. Queue's AM resource limit exceeded."
    )
    waiting = {"queue": "lab", "state": "ACCEPTED", "diagnostics": said}
    assert "maximum-am-resource-percent" in describe_application(waiting)
    assert "waits for room" in describe_application({**waiting, "diagnostics": ""})


QUEUE = {
    "queueName": "lab",
    "absoluteUsedCapacity": 20.0,
    "absoluteMaxCapacity": 100.0,
    "userLimitFactor": 1.0,
}
ASKED = Resources(memory_mb=1024, vcores=1)
LIMITED = {
    "username": "ada",
    "resourcesUsed": {"memory": 900, "vCores": 1},
    "userResourceLimit": {"memory": 1000, "vCores": 9},
}
ENOUGH = Resources(memory_mb=4096, vcores=4)


@pytest.mark.parametrize(
    ("changes", "headroom", "reason"),
    [
        ({"absoluteUsedCapacity": 100.0}, None, "queue lab is full: it uses its 100 % of the cluster"),
        ({"users": {"user": [LIMITED]}}, None, "queue lab gives ada no more now: user-limit-factor is 1"),
        ({"users": {"user": [LIMITED]}}, ENOUGH, "other applications of queue lab go first"),
        ({}, Resources(memory_mb=512, vcores=0), "queue lab is full: 512 MiB memory, 1 CPU too few are left for it"),
        ({}, ENOUGH, "other applications of queue lab go first"),
    ],
)  # fmt: skip
def test_why_an_ask_waits(changes: dict[str, object], headroom: Resources | None, reason: str) -> None:
    assert describe_wait(ASKED, headroom, {**QUEUE, **changes}, "ada") == reason


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("No module named 'zmq'", INSTALL),
        ("/opt/python: No module named psutil", INSTALL),
        ("No module named 'roost'", "set the option python to a Python that has ipykernel"),
        ("SyntaxError: invalid syntax", "set the option python to a Python that has ipykernel"),
    ],
)
def test_a_python_without_the_packages_of_an_agent_needs_ipykernel(cause: str, advice: str) -> None:
    assert advise_python(cause) == advice
