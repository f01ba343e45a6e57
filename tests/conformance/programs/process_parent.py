# state: the parent of the kernel

# %%
import os, psutil

print(psutil.Process().children(), os.getppid() == psutil.Process().ppid())

# %% client
import os
from pathlib import Path

print(os.getpid() == int(Path(f"/proc/{kernel.pid}/stat").read_text().rpartition(")")[2].split()[1]))
