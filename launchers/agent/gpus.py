"""The GPUs of this machine: from NVML, or declared by the operator."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from roost.placement.model import Device

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 10.0
"""A driver that nobody uses is loaded by the first who asks: a second or two for each GPU."""
_WAIT_S = 0.05


class DeviceReader:
    """Lists devices with their real use. Device ids are opaque: a GPU or MIG UUID, else an index.

    `declared` is a number of GPUs that are taken as given (their real use is unknown); None asks NVML, and finds
    none where there is no NVML, no driver or no GPU. NVML is asked in a thread, since with a GPU that fell off the
    bus an answer may take seconds, or for ever; what is read meanwhile is the last answer. `read_at` is the
    monotonic time of that answer, `math.inf` where nothing is measured.
    """

    def __init__(self, declared: int | None = None, model: str = "") -> None:
        self.read_at = math.inf
        self._last = tuple(Device(id=str(index), model=model) for index in range(declared or 0))
        self._is_measured = declared is None
        self._nvml: Any = None
        self._reader: threading.Thread | None = None
        self.read(_FIRST_WAIT_S)

    def read(self, wait_s: float = _WAIT_S) -> tuple[Device, ...]:
        """All devices, now if NVML answers within `wait_s`: it takes a few hundred microseconds a GPU. Never raises."""
        if self._is_measured and (self._reader is None or not self._reader.is_alive()):
            self._reader = threading.Thread(target=self._refresh, name="nvml", daemon=True)
            self._reader.start()
            self._reader.join(wait_s)
            if self._reader.is_alive():
                log.warning("the GPUs have not answered within %g s; their last known state is shown", wait_s)
        return self._last

    def close(self) -> None:
        """Let go of NVML, unless it does not answer. May be repeated."""
        self._is_measured = False
        if self._nvml is not None and self._reader is not None and not self._reader.is_alive():
            self._ask(self._nvml.nvmlShutdown)
            self._nvml = None

    def _refresh(self) -> None:
        try:
            if self._nvml is None:
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
            started_at = time.monotonic()
            self._last, self.read_at = self._list(), started_at
        except Exception as problem:  # noqa: BLE001 - NVML's own error tree, or no such module
            log.debug("no NVML here: %s", problem)
            self._is_measured = self._nvml is not None

    def _list(self) -> tuple[Device, ...]:
        found: dict[str, Device] = {}
        for index in range(self._ask(self._nvml.nvmlDeviceGetCount) or 0):
            handle = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
            for device in self._read_gpu(handle) if handle is not None else ():
                has_id = device.id and device.id not in found
                named = device if has_id else replace(device, id=str(index))
                found.setdefault(named.id, named)
        return tuple(found.values())

    def _read_gpu(self, gpu: Any) -> list[Device]:
        nvml = self._nvml
        mode = self._ask(nvml.nvmlDeviceGetMigMode, gpu)
        if mode is None or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return [self._describe(gpu)]
        slots = range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0)
        slices = (self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, slot) for slot in slots)
        return [self._describe(part) for part in slices if part is not None]

    def _describe(self, handle: Any) -> Device:
        nvml = self._nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return Device(
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
