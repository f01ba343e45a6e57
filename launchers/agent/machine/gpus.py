"""The GPUs of this machine: NVML reports them, or the operator declares them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from roost.placement.model import Device
from roost.placement.model.visible_gpus import is_visible

log = logging.getLogger(__name__)

_FIRST_WAIT_S = 10.0  # it loads an unused driver: a second or two for each GPU
WAIT_S = 0.05


class DeviceReader:
    """A reader of devices and their real use. A device's id is its GPU or MIG UUID, otherwise an index.

    `declared` is a number of GPUs whose real use is unknown. If it is None, a thread asks NVML, because a GPU that fell
    off the bus may never answer. `read_at` is the monotonic time of the last answer (`math.inf`: not measured).

    Several users of a machine must call each device by one name. With `ids`, these are the devices: root has declared
    them. With `is_shared`, NVML is asked in any case, and the first `declared` of its devices count. `visible` are the
    names of the GPUs that this process may use; None: all.
    """

    def __init__(
        self,
        declared: int | None = None,
        model: str = "",
        *,
        ids: Sequence[str] | None = None,
        is_shared: bool = False,
        visible: Sequence[str] | None = None,
        first_wait_s: float = _FIRST_WAIT_S,
    ) -> None:
        self.read_at = math.inf
        self.parents: dict[str, str] = {}
        """The GPU of each device that is a slice of one."""
        self.memory_by_pid: dict[int, int] = {}
        """The bytes of memory of all GPUs that each process used at the last reading."""
        names = list(map(str, range(declared or 0))) if ids is None else list(ids)[:declared]
        self._named = tuple(Device(id=name, model=model) for name in names)
        self._visible = visible
        # A machine that has GPUs has other names for them than indexes: then wait for these names.
        waits = is_shared and ids is None
        self._last = () if waits else self._named
        self.ids = None if ids is None else tuple(ids)
        """The ids that root has declared; None: those of NVML."""
        self._most = declared
        self._is_measured = declared is None or is_shared
        self._nvml: Any = None
        self._reader: threading.Thread | None = None
        self.read(first_wait_s)

    def read(self, wait_s: float = WAIT_S) -> tuple[Device, ...]:
        """Return all devices, as of now if NVML answers within `wait_s` (some hundred µs per GPU). Never raises."""
        if self._is_measured and (self._reader is None or not self._reader.is_alive()):
            self._reader = threading.Thread(target=self._refresh, name="nvml", daemon=True)
            self._reader.start()
            self._reader.join(wait_s)
            if self._reader.is_alive():
                log.warning("the GPUs have not answered within %g s; their last known state is used", wait_s)
        return tuple(device for device in self._last if is_visible(device, self._visible))

    def close(self) -> None:
        """Shut NVML down, unless a call to it hangs. May be repeated."""
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
            self._processes: dict[int, int] = {}
            found = self._list()
            if self.ids is not None:
                known = {device.id: device for device in found}
                self._last = tuple(known.get(device.id, device) for device in self._named)
            else:
                self._last = found[: self._most] or self._named
            if found or self._most is None:
                self.read_at = started_at
            self.memory_by_pid = self._processes
        except Exception as problem:  # noqa: BLE001 - NVML's own error tree, or no such module
            log.debug("no NVML here: %s", problem)
            if self._nvml is None:
                self._last, self._is_measured = self._named, False

    def _list(self) -> tuple[Device, ...]:
        found: dict[str, Device] = {}
        for index in range(self._ask(self._nvml.nvmlDeviceGetCount) or 0):
            handle = self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index)
            for device in self._read_gpu(handle, index) if handle is not None else ():
                has_id = device.id and device.id not in found
                named = device if has_id else replace(device, id=str(index))
                found.setdefault(named.id, named)
        return tuple(found.values())

    def _read_gpu(self, gpu: Any, index: int) -> list[Device]:
        nvml = self._nvml
        mode = self._ask(nvml.nvmlDeviceGetMigMode, gpu)
        if mode is None or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
            return [self._describe(gpu, str(index))]
        slots = range(self._ask(nvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0)
        slices = (self._ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, slot) for slot in slots)
        parent = _text(self._ask(nvml.nvmlDeviceGetUUID, gpu))
        parts = [
            self._describe(part, *filter(None, (str(index), parent))) for part in slices if part is not None
        ]
        self.parents |= dict.fromkeys((part.id for part in parts), parent)
        return parts

    def _describe(self, handle: Any, *names: str) -> Device:
        nvml = self._nvml
        for process in self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ():
            used = int(process.usedGpuMemory or 0)  # None: the driver does not tell, as in most containers
            self._processes[process.pid] = self._processes.get(process.pid, 0) + used
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        return Device(
            id=_text(self._ask(nvml.nvmlDeviceGetUUID, handle)),
            model=_text(self._ask(nvml.nvmlDeviceGetName, handle)),
            memory_bytes=int(memory.total) if memory is not None else 0,
            used=rates.gpu / 100 if rates is not None else None,
            memory_used_bytes=int(memory.used) if memory is not None else None,
            names=names,
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError as problem:
            log.debug("%s: %s", getattr(question, "__name__", question), problem)
            return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
