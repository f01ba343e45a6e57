"""Immortal preloads: kernels do not write to the objects of their zygote only by using them (PEP 683).

Python counts references to an object when it uses the object. Each count writes to the object's page, and so copies the
page. Since 3.12, Python counts no references to an object whose counter has a certain high value. After `1+1`, this
saves a third of a kernel's private memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pickle
import sys
import sysconfig
import threading
import types
from typing import Any

_COUNTERS = {(3, 12): 0xFFFFFFFF, (3, 13): 0xFFFFFFFF, (3, 14): 1 << 48 | 0xC0000000}
"""The bits of an immortal counter by Python version, from refcount.h, on 64-bit systems. Since 3.14 one bit is a flag.

The interpreter looks at the flag, or at the number, depending on the place.
"""
_IMMORTAL = _COUNTERS.get(sys.version_info[:2], 0)
"""The bits of this Python; 0 if they are not known."""
_FLAGS = 0xFFFF << 48
_BATCH = 10_000
_CODE_PARTS = (
    "co_consts", "co_names", "co_filename", "co_name", "co_qualname", "co_linetable", "co_exceptiontable"
)  # fmt: skip


def why_not() -> str:
    """Return why this Python's objects cannot be made immortal; empty if they can."""
    if not _IMMORTAL or sys.implementation.name != "cpython":
        return f"not proven right for Python {sys.version_info[0]}.{sys.version_info[1]}"
    is_usual = sys.maxsize > 1 << 32 and not sysconfig.get_config_var("Py_GIL_DISABLED")
    if not is_usual or not _is_immortal(id(None)):
        return "this build of Python counts references in another way"
    return "" if _passes_test() else "the self-test failed"


def make_immortal() -> None:
    """Make every object immortal that the garbage collector knows, or that such an object refers to."""
    counter = ctypes.c_uint64.from_address
    found = gc.get_objects()
    while found:
        batch = found[-_BATCH:]
        del found[-_BATCH:]
        fresh = []
        for each in batch:
            count = counter(id(each))
            if count.value & _IMMORTAL != _IMMORTAL:
                count.value = count.value & _FLAGS | _IMMORTAL
                fresh.append(each)
        found += gc.get_referents(*fresh)
        for each in fresh:
            kind = type(each)
            if kind is dict:
                found += each  # its keys, which the collector leaves out
            elif kind is types.CodeType:
                found += [getattr(each, name) for name in _CODE_PARTS]


def _is_immortal(address: int) -> bool:
    """True if the object there is immortal, and no reference to it has been counted since."""
    return ctypes.c_uint64.from_address(address).value & ~_FLAGS == _IMMORTAL & ~_FLAGS


def _passes_test() -> bool:
    """True if a forked child can make all objects immortal and then use them."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            make_immortal()
            _use_objects()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _use_objects() -> None:
    """Do what kernels do with objects that are immortal: read, change, replace and drop them, and collect garbage."""
    # Addresses, because a list of the objects would itself have references to them.
    used = [*map(id, (json, json.dumps, json.dumps.__code__, vars(json), json.JSONEncoder, sys.modules))]
    assert all(map(_is_immortal, used))
    plain: Any = json.JSONEncoder.default
    derived = type("Derived", (json.JSONEncoder,), {"default": lambda self, o: str(o)})
    assert json.dumps({"a": object}, cls=derived).startswith('{"a": "<class')
    assert pickle.loads(pickle.dumps([plain, sys.version_info[:2]])) == [plain, sys.version_info[:2]]
    json.extra = [json]  # type: ignore[attr-defined]
    del json.extra, sys.modules["json"]  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.startswith("json.")]:
        del sys.modules[name]
    again: Any = importlib.import_module("json")
    assert again is not json
    assert again.loads(json.dumps([1.5, "x", None])) == [1.5, "x", None]
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    with contextlib.suppress(RecursionError):
        _recurse()
    del again, derived
    gc.collect()
    for module in list(sys.modules.values()):
        vars(module).get("__doc__")
    assert gc.isenabled()
    assert all(map(_is_immortal, used))


def _recurse() -> None:
    _recurse()
