"""The arguments of the bridge."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.launchers.bridge.__main__ import read_arguments
from roost.launchers.bridge.bridge import BridgeError


@pytest.mark.parametrize(
    ("arguments", "variables", "timeout_s"),
    [
        (["f", "run.sh", "--launch-timeout", "9"], {}, 60.0),
        (["f", "run.sh", "--launch-timeout", "9"], {"KERNEL_LAUNCH_TIMEOUT": "90"}, 90.0),
        (
            ["f", "--launch-timeout", "7.5", "run.sh", "--launch-timeout", "9"],
            {"KERNEL_LAUNCH_TIMEOUT": "x"},
            7.5,
        ),
    ],
)
def test_options_come_before_the_launcher(
    arguments: list[str], variables: dict[str, str], timeout_s: float
) -> None:
    assert read_arguments(arguments, variables) == (Path("f"), timeout_s, ["run.sh", "--launch-timeout", "9"])


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        ([], {}, "The bridge is started as"),
        (["f"], {}, "The bridge is started as"),
        (["f", "--launch-timeout", "5"], {}, "The bridge is started as"),
        (["f", "--launch-timeout", "soon", "run.sh"], {}, "--launch-timeout = soon is not possible"),
        (["f", "run.sh"], {"KERNEL_LAUNCH_TIMEOUT": "-3"}, "KERNEL_LAUNCH_TIMEOUT = -3 is not possible"),
        (["f", "run.sh"], {"KERNEL_LAUNCH_TIMEOUT": "nan"}, "KERNEL_LAUNCH_TIMEOUT = nan is not possible"),
    ],
)
def test_arguments_that_cannot_be(arguments: list[str], variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(BridgeError, match=sentence):
        read_arguments(arguments, variables)
