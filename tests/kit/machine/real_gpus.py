"""A real NVIDIA GPU: what the driver says of it, and Python code that uses it through the driver's library alone."""

from __future__ import annotations

import shutil
import subprocess

from roost.testing.deadlines import allow_s

CUDA = """
import ctypes, threading
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        raise OSError(f"{name}: {code}")
def count():
    found = ctypes.c_int()
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(found))
    return found.value
def hold(mib):
    context, memory = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(mib << 20))
    return context, memory
def burn(mib, is_over=threading.Event()):
    context, memory = hold(mib)
    def fill():
        call("cuCtxSetCurrent", context)
        while not is_over.is_set():
            call("cuMemsetD32_v2", memory, 1, ctypes.c_size_t(mib << 18))
            call("cuCtxSynchronize")
    threading.Thread(target=fill, daemon=True).start()
    return is_over
"""
"""Functions of a kernel: `count()` of its GPUs, `hold(MiB)` of memory, and `burn(MiB)`, which keeps a GPU busy.

`burn` returns the event that ends it.
"""


def why_not() -> str:
    """Return why there is no real GPU here; empty if there is one."""
    if shutil.which("nvidia-smi") is None:
        return "this machine has no NVIDIA GPU: nvidia-smi is not installed"
    try:
        return "" if ask("uuid") else "nvidia-smi lists no GPU"
    except subprocess.SubprocessError as problem:
        return f"nvidia-smi fails: {problem}"


def ask(fields: str, of: str = "gpu") -> list[list[str]]:
    """Return what nvidia-smi says: for each GPU (or `compute-apps`), the values of these comma-separated fields."""
    command = ["nvidia-smi", f"--query-{of}={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=allow_s(60))
    return [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]
