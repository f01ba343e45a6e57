# state: descriptors that children inherit
# in ci: yes

# %%
import os, re

for name in sorted(os.listdir("/proc/self/fd"), key=int):
    try:
        if int(name) > 2 and os.get_inheritable(int(name)):
            print(name, re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{name}")))
    except OSError:
        pass
