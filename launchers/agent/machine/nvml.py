"""The GPUs that NVIDIA's library lists, on a node whose Python has no `pynvml`."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os

from roost.placement.model import Device
from roost.placement.model.visible_gpus import is_visible, list_visible_gpus

log = logging.getLogger(__name__)

_WAIT_S = 10.0
_UUID_BYTES = 96  # NVML_DEVICE_UUID_V2_BUFFER_SIZE


async def list_gpus() -> tuple[Device, ...]:
    """Return the GPUs that this process may use, by UUID. Return none without the library or an answer in 10 s."""
    try:
        uuids = await asyncio.wait_for(asyncio.to_thread(_list_uuids), _WAIT_S)
    except (OSError, AttributeError) as problem:
        log.warning("no GPU is known here: %s", problem)
        return ()
    except asyncio.TimeoutError:
        log.warning("the GPUs have not answered within %g s", _WAIT_S)
        return ()
    found = (Device(id=uuid, names=(str(index),)) for index, uuid in enumerate(uuids))
    visible = list_visible_gpus(os.environ)
    return tuple(device for device in found if is_visible(device, visible))


def _list_uuids() -> list[str]:
    library = ctypes.CDLL("libnvidia-ml.so.1")
    if library.nvmlInit_v2() != 0:
        return []
    try:
        count, found = ctypes.c_uint(), []
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            gpu, text = ctypes.c_void_p(), ctypes.create_string_buffer(_UUID_BYTES)
            if (
                library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(gpu)) == 0
                and library.nvmlDeviceGetUUID(gpu, text, ctypes.c_uint(_UUID_BYTES)) == 0
            ):
                found.append(text.value.decode())
        return found
    finally:
        library.nvmlShutdown()
