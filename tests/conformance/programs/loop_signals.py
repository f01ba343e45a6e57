# state: signal handlers of the event loop

# %%
import asyncio, os, signal

fired = asyncio.Event()
asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, fired.set)
os.kill(os.getpid(), signal.SIGUSR1)
print(await asyncio.wait_for(fired.wait(), 10))
asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
