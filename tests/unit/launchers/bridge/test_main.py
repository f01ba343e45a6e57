"""The arguments of the bridge."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.launchers.bridge.__main__ import BridgeError, read_arguments


@pytest.mark.parametrize(
    ("arguments", "variables", "timeout_s"),
    [
        (["f", "run.sh", "-x"], {}, 60.0),
        (["f", "run.sh", "-x"], {"KERNEL_LAUNCH_TIMEOUT": "90"}, 90.0),
    ],
)
def test_a_file_and_the_launcher(arguments: list[str], variables: dict[str, str], timeout_s: float) -> None:
    assert read_arguments(arguments, variables) == (Path("f"), timeout_s, ["run.sh", "-x"])


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        ([], {}, "The bridge is started as"),
        (["f"], {}, "The bridge is started as"),
        (["f", "run.sh"], {"KERNEL_LAUNCH_TIMEOUT": "soon"}, "KERNEL_LAUNCH_TIMEOUT = soon is not possible"),
        (["f", "run.sh"], {"KERNEL_LAUNCH_TIMEOUT": "-3"}, "KERNEL_LAUNCH_TIMEOUT = -3 is not possible"),
        (["f", "run.sh"], {"KERNEL_LAUNCH_TIMEOUT": "nan"}, "KERNEL_LAUNCH_TIMEOUT = nan is not possible"),
    ],
)
def test_arguments_that_cannot_be(arguments: list[str], variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(BridgeError, match=sentence):
        read_arguments(arguments, variables)
