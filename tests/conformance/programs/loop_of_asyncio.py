# state: the event loop
# in ci: yes

# %%
import asyncio, sys, threading

loop = asyncio.get_running_loop()
print(
    type(loop),
    loop.get_debug(),
    loop.is_running(),
    type(asyncio.get_event_loop_policy() if sys.version_info < (3, 14) else loop).__name__,
)
print(await asyncio.gather(asyncio.sleep(0.01, 1), asyncio.to_thread(lambda: 2)))

# %%
await asyncio.wait_for(asyncio.sleep(0.01, "waited"), 5)

# %%
def run():
    found.append(asyncio.run(asyncio.sleep(0, "own loop")))


found = []
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(found)
asyncio.run(asyncio.sleep(0))
