"""A launcher's command and environment get their server's values."""

from __future__ import annotations

import pytest

from roost.launchers.bridge.__main__ import BridgeError, build_environment, fill_command

VALUES = {"kernel_id": "k", "response_address": "127.0.0.1:1", "public_key": "PEM", "port_range": "0..0"}


def test_arguments_and_environment_are_filled() -> None:
    argv = [
        "run.sh",
        "--RemoteProcessProxy.kernel-id",
        "{kernel_id}",
        "--to={response_address}",
        "{port_range}",
    ]
    env = {"KEY": "{public_key}", "SPARK_OPTS": "--name ${kernel_id} {unknown} {}"}
    assert fill_command(argv, env, VALUES) == (
        ["run.sh", "--RemoteProcessProxy.kernel-id", "k", "--to=127.0.0.1:1", "0..0"],
        {"KEY": "PEM", "SPARK_OPTS": "--name ${kernel_id} {unknown} {}"},
    )


@pytest.mark.parametrize("missing", ["response_address", "public_key"])
def test_a_launcher_that_could_not_answer_is_refused(missing: str) -> None:
    argv = [f"{{{name}}}" for name in VALUES if name != missing]
    with pytest.raises(BridgeError, match=f"has no {{{missing}}}"):
        fill_command(argv, {}, VALUES)


def test_a_place_of_a_shell_does_not_count() -> None:
    with pytest.raises(BridgeError):
        fill_command(["${response_address}", "{public_key}"], {}, VALUES)


def test_the_environment_is_that_of_the_launchers_servers() -> None:
    built = build_environment({"HOME": "/h", "KERNEL_ID": "old"}, "k", "ada")
    assert built == {"HOME": "/h", "KERNEL_ID": "k", "KERNEL_USERNAME": "ada", "EG_LOG_LEVEL": "20"}
    assert build_environment({"KERNEL_USERNAME": "bo"}, "k", "ada")["KERNEL_USERNAME"] == "bo"


@pytest.mark.parametrize(("given", "used"), [("10", "20"), ("DEBUG", "20"), ("40", "40"), ("ERROR", "ERROR")])
def test_no_launcher_logs_the_key(given: str, used: str) -> None:
    built = build_environment({"LOG_LEVEL": given, "EG_LOG_LEVEL": given}, "k", "ada")
    assert (built["LOG_LEVEL"], built["EG_LOG_LEVEL"]) == (used, used)
