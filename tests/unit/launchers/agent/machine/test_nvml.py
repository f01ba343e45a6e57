"""The list of GPUs without `pynvml`, from a stand-in for NVIDIA's library."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from roost.launchers.agent.machine.nvml import list_gpus


class Library:
    """A stand-in for NVIDIA's library, with a GPU for each UUID. A GPU with an empty UUID cannot be opened."""

    def __init__(self, *uuids: bytes, code: int = 0) -> None:
        self.uuids, self.code, self.is_open = uuids, code, False

    def nvmlInit_v2(self) -> int:  # noqa: N802 - NVML's names
        self.is_open = self.code == 0
        return self.code

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.is_open = False
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.uuids)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, gpu: Any) -> int:  # noqa: N802
        gpu._obj.value = index.value + 1
        return 0 if self.uuids[index.value] else 15

    def nvmlDeviceGetUUID(self, gpu: Any, text: Any, size: Any) -> int:  # noqa: N802
        text.value = self.uuids[gpu.value - 1]
        return 0


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        (Library(b"GPU-a", b"", b"GPU-b"), ["GPU-a", "GPU-b"]),
        (Library(b"GPU-a", code=9), []),
        (OSError("libnvidia-ml.so.1: cannot open shared object file"), []),
    ],
)
async def test_the_gpus_have_the_ids_of_the_driver(
    library: Library | OSError, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Library:
        assert name == "libnvidia-ml.so.1"
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert [device.id for device in await list_gpus()] == expected
    assert isinstance(library, OSError) or not library.is_open
