# state: child processes of the event loop, and its watchers

# %%
import asyncio

process = await asyncio.create_subprocess_exec("sh", "-c", "echo out; exit 3", stdout=asyncio.subprocess.PIPE)
print(await process.communicate(), process.returncode)
