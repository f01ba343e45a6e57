# state: the log of a crash

# %%
import ctypes, faulthandler, os, resource

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ctypes.string_at(0)

# %% client
print("Segmentation fault" in kernel.log(), "most recent call first" in kernel.log())
