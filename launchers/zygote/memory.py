"""What lets forked kernels share a zygote's memory, and have the rest of it ready before they are launched.

A forked child shares all pages until one side writes; Python writes to an object's page by merely using it. A kernel
writes to some 4,000 pages while it starts, 2 to 4 µs each: half of its start and all of its size. So the zygote leaves
no holes that children would fill (`plug_holes`), lays side by side what they walk over (`gather_module_names`,
`ModuleFiles`), and finds out in a rehearsal which pages they will write to (`written_pages`), so that a spare child
takes its copies before it is needed.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import itertools
import mmap
import os
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any, cast

_POPULATE_READ, _POPULATE_WRITE = 22, 23
"""From Linux's mman.h (5.14); older kernels say EINVAL."""
_PAGE_PRESENT = 1 << 63
_PAGE_OWN = _PAGE_PRESENT | 1 << 56
"""Bits of /proc/PID/pagemap: in memory, mapped by nobody else."""


def plug_holes() -> list[Any]:
    """Allocate what is free between live objects, so that children allocate on fresh pages; to be kept.

    A child that fills the last free block of a page makes its own copy of that page for it. The objects of each of
    pymalloc's size classes are returned; what glibc's malloc had free is simply never given back.
    """
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        rows = [line.split() for line in file.read().splitlines()]
    header = sys.getsizeof(b"")
    plugs: list[Any] = []
    for row in rows:  # class, block size, pools, blocks in use, blocks free
        if len(row) == 5 and all(cell.isdigit() for cell in row):
            size, free = int(row[1]), range(int(row[4]))
            plugs.append([bytes(size - header) for _ in free] if size > header else [float(n) for n in free])
    with contextlib.suppress(AttributeError):  # not glibc, or older than 2.33
        plug_malloc(ctypes.CDLL(None))
    return plugs


def plug_malloc(libc: ctypes.CDLL) -> None:
    """Allocate every free chunk below the top of the heap, large ones first."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in [
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            ]
        ]

    libc.mallinfo2.restype = Mallinfo2
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.sbrk.argtypes, libc.free.argtypes = (
        (ctypes.c_size_t,),
        (ctypes.c_ssize_t,),
        (ctypes.c_void_p,),
    )
    info = libc.mallinfo2()
    end = libc.sbrk(0)
    bottom, top = end - info.arena, end - info.keepcost
    size = 120_000  # above, malloc maps memory of its own
    while size >= 24:
        chunk = libc.malloc(size)
        if bottom <= chunk < top:
            continue
        libc.free(chunk)
        size = size * 9 // 10 if size > 1024 else size - 16


def gather_module_names() -> None:
    """Lay the keys of sys.modules out side by side: IPython makes a set of them, which writes to each."""
    modules = [((name + " ")[:-1], module) for name, module in sys.modules.items()]
    sys.modules.clear()
    sys.modules.update(modules)


class ModuleFiles:
    """Stands in for ``sys`` while ipykernel lists the files of all modules: walking them writes to 1,200 pages.

    A copy of the zygote's part of that list, laid out side by side, is all that is read then.
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


def written_pages(pid: int) -> array.array[int]:
    """The pages of child `pid` that are its own by now, or mapped from files, among those of this process.

    As flat triples for madvise: address, bytes, advice. A page that the child's parent wrote to is taken for the
    child's, too: they are few.
    """
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
                continue
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


def find_madvise() -> Callable[[int, int, int], int]:
    """The C library's madvise: address, bytes, advice → 0, or -1 where it is not known."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return cast(Callable[[int, int, int], int], madvise)
