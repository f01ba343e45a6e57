# state: the namespaces and the control group
# in ci: yes

# %%
import os

# %% client
import os
from pathlib import Path

names = sorted(os.listdir("/proc/self/ns"))
print(
    [
        name
        for name in names
        if os.readlink(f"/proc/self/ns/{name}") != os.readlink(f"/proc/{kernel.pid}/ns/{name}")
    ]
)
print(Path("/proc/self/cgroup").read_text() == Path(f"/proc/{kernel.pid}/cgroup").read_text())
