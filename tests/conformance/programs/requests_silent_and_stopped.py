# state: the queue of requests

# %%
import time

# %% client
first, second = kernel.send("time.sleep(0.2); 1/0"), kernel.send("print('never')")
kernel.finish(first)

# %%
print("later cell")
