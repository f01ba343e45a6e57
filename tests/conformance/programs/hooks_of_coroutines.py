# state: hooks of asynchronous generators and of coroutines

# %%
import sys

print(sys.get_asyncgen_hooks().finalizer is not None, sys.get_coroutine_origin_tracking_depth())
import asyncio


async def numbers():
    try:
        for n in range(3):
            yield n
    finally:
        print("closed")


async for n in numbers():
    print(n)
    break
import gc

gc.collect()
await asyncio.sleep(0)
