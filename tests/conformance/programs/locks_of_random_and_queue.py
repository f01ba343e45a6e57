# state: locks in modules of the standard library

# %%
import concurrent.futures.thread, queue, random, tempfile, threading, warnings, weakref, functools, multiprocessing.util, linecache, reprlib, decimal, asyncio, subprocess, tracemalloc
import gc
from _thread import LockType, RLock

held = []
for module in (
    concurrent.futures.thread,
    queue,
    random,
    tempfile,
    threading,
    warnings,
    weakref,
    functools,
    multiprocessing.util,
    reprlib,
    subprocess,
    asyncio.events,
):
    for name, value in vars(module).items():
        if isinstance(value, LockType) and value.locked():
            held.append(f"{module.__name__}.{name}")
print(sorted(held))
