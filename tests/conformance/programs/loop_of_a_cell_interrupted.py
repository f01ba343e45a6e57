# state: an interrupt of a cell that awaits

# %% interrupt: 0.3
import asyncio

await asyncio.sleep(1)

# %%
print("next")
