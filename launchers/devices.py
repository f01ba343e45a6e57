"""The GPUs of this machine: from NVML, or declared by the operator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from .messages import DeviceStatus

log = logging.getLogger(__name__)


class Devices:
    """Lists devices with their real use. Device ids are opaque: an index where declared, else a GPU or MIG UUID.

    `declared` is a number of GPUs that are taken as given (their real use is unknown); None asks NVML, and finds
    none where there is no NVML, no driver or no GPU.
    """

    def __init__(self, declared: int | None = None, model: str = "") -> None:
        self._declared: list[DeviceStatus] | None = None
        self._nvml: Any = None
        if declared is not None:
            self._declared = [DeviceStatus(id=str(index), model=model) for index in range(declared)]
            return
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as problem:  # noqa: BLE001 - NVML's own error tree, or no such module
            log.debug("no NVML here: %s", problem)
        else:
            self._nvml = pynvml

    def read(self) -> tuple[DeviceStatus, ...]:
        """All devices now; a few hundred microseconds a GPU with NVML. Never raises."""
        if self._declared is not None:
            return tuple(self._declared)
        if self._nvml is None:
            return ()
        found: list[DeviceStatus] = []
        for index in range(self._ask(self._nvml.nvmlDeviceGetCount) or 0):
            handle = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                found += self._read_gpu(handle)
        return tuple(found)

    def close(self) -> None:
        """Let go of NVML. May be repeated."""
        if self._nvml is not None:
            self._ask(self._nvml.nvmlShutdown)
            self._nvml = None

    def _read_gpu(self, gpu: Any) -> list[DeviceStatus]:
        nvml = self._nvml
        mode = self._ask(nvml.nvmlDeviceGetMigMode, gpu)
        if mode is None or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return [self._describe(gpu)]
        slots = range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0)
        slices = (self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, slot) for slot in slots)
        return [self._describe(part) for part in slices if part is not None]

    def _describe(self, handle: Any) -> DeviceStatus:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return DeviceStatus(
            id=_text(self._ask(nvml.nvmlDeviceGetUUID, handle)),
            model=_text(self._ask(nvml.nvmlDeviceGetName, handle)),
            memory_bytes=int(memory.total) if memory is not None else 0,
            used=rates.gpu / 100 if rates is not None else None,
            memory_used_bytes=int(memory.used) if memory is not None else None,
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError as problem:
            log.debug("%s: %s", getattr(question, "__name__", question), problem)
            return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
