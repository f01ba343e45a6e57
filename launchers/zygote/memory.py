"""How forked kernels share a zygote's memory, and get their own pages before they are launched.

A child shares each page with its parent until one of them writes to the page. Even using a Python object writes to its
page. A kernel writes to about 4,000 pages while it starts. At 2 to 4 µs each, the copies take half of its start.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import itertools
import mmap
import sys
import types
from typing import Any

_POPULATE_READ, _POPULATE_WRITE = 22, 23
"""Advice for madvise, from Linux's mman.h (5.14). Older systems answer EINVAL."""
_PAGE_PRESENT = 1 << 63
_PAGE_OWN = _PAGE_PRESENT | 1 << 56
"""Bits of /proc/PID/pagemap: the page is in memory; no other process maps it."""
_POOL_BYTES, _POOL_HEADER_BYTES = 16 << 10, 48
"""From CPython's pycore_obmalloc.h, 3.10 to 3.14, on 64-bit systems."""
_FRESH_BLOCKS, _MOST_BLOCKS = 4, 20_000
_MALLINFO2 = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
"""The fields of glibc's struct mallinfo2, see mallinfo(3)."""


def fill_heap() -> None:
    """Allocate every free chunk of malloc's heap below its top, large ones first, and never free them.

    A child that fills a free chunk copies the chunk's page. This saves 1.0 of 15.5 MiB of private memory per kernel,
    measured after `1+1` (mean of 10 kernels, median of 3 runs, glibc 2.36, 2026-11-21).
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # not glibc, or older than 2.33
        return

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO2.split()]

    libc.mallinfo2.restype = Mallinfo2
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.sbrk.argtypes = (ctypes.c_size_t,), (ctypes.c_ssize_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    info = libc.mallinfo2()
    end = libc.sbrk(0)
    bottom, top = end - info.arena, end - info.keepcost
    size = 120_000  # malloc maps larger chunks outside the heap
    while size >= 24:
        chunk = libc.malloc(size)
        if bottom <= chunk < top:
            continue
        libc.free(chunk)
        size = size * 9 // 10 if size > 1024 else size - 16


def fill_pools() -> None:
    """Allocate the free blocks in the pools of Python's own allocator, and never free them.

    A child that fills a free block copies the block's page. After this call, a child gets fresh pools instead.
    """
    allocate, free = ctypes.pythonapi.PyObject_Malloc, ctypes.pythonapi.PyObject_Free
    allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    free.restype, free.argtypes = None, (ctypes.c_void_p,)
    for size in range(16, 513, 16):
        begun: list[int] = []  # blocks in ascending order from the beginning of a pool: it is a fresh one
        for _ in range(_MOST_BLOCKS):
            block = allocate(size)
            if begun and 0 < block - begun[-1] <= 4 * size:  # this code itself takes some between them
                begun.append(block)
            else:
                begun = [block] if block % _POOL_BYTES == _POOL_HEADER_BYTES else []
            if len(begun) == _FRESH_BLOCKS:
                break
        for block in begun:
            free(block)


def clear_type_cache() -> None:
    """Empty Python's cache of attribute lookups.

    The cache is full after the imports. A child that looks up another attribute then replaces a name in the cache, and
    writes to the old and to the new name. Together with `fill_pools`, this saves 0.5 (Python 3.13) to 0.8 (3.11) MiB of
    each kernel's private memory (median of 12 kernels after `1+1`, 2026-11-25).
    """
    clear: Any = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
    clear()


def gather_module_names() -> None:
    """Copy the keys of sys.modules side by side. IPython makes a set of the keys, which writes to each key's page."""
    modules = [((name + " ")[:-1], module) for name, module in sys.modules.items()]
    sys.modules.clear()
    sys.modules.update(modules)


class ModuleFiles:
    """A stand-in for `sys` while ipykernel lists the files of all modules, which would write to 1,200 pages.

    It shows a copy of the zygote's part of the list, with its items side by side, and the modules imported since.
    """

    def __init__(self) -> None:
        self.count = len(sys.modules)
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        self.known = {
            n: types.SimpleNamespace(__file__=(f + " ")[:-1] if f else None) for n, f in enumerate(files)
        }

    @property
    def modules(self) -> dict[Any, Any]:
        added = list(itertools.islice(reversed(sys.modules.items()), max(0, len(sys.modules) - self.count)))
        return {**self.known, **dict(reversed(added))}

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def find_written_pages(pid: int) -> array.array[int]:
    """Return the pages that child `pid` has copied or read, as flat triples for madvise: address, bytes, advice."""
    runs = array.array("Q")
    page = mmap.PAGESIZE
    with (
        contextlib.suppress(OSError),
        open("/proc/self/maps") as maps,
        open(f"/proc/{pid}/pagemap", "rb", 0) as pagemap,
    ):
        for line in maps:
            addresses, mode = line.split()[:2]
            start, stop = (int(address, 16) for address in addresses.split("-"))
            if mode[0] != "r" or mode[3] != "p" or "[v" in line or "[stack" in line:
                continue  # not readable, shared, or of the system
            pagemap.seek(start // page * 8)
            entries = array.array("Q", pagemap.read((stop - start) // page * 8))
            mask, advice = (_PAGE_OWN, _POPULATE_WRITE) if mode[1] == "w" else (_PAGE_PRESENT, _POPULATE_READ)
            at = start
            for is_wanted, run in itertools.groupby(entry & mask == mask for entry in entries):
                length = sum(1 for _ in run) * page
                if is_wanted:
                    runs.extend((at, length, advice))
                at += length
    return runs


def find_madvise() -> Any:
    """Return the C library's madvise: address, bytes, advice → 0, or -1 if the system does not know the advice."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise
