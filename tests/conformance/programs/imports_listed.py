# state: modules that are imported already
# in ci: yes

# %%
import sys

print(
    [
        name
        for name in ("matplotlib", "roost", "_roost_zygote", "psutil", "IPython", "zmq")
        if name in sys.modules
    ]
)
print(
    sorted(
        name
        for name in sys.modules
        if "zygote" in name or "roost" in name or name in ("loop", "memory", "standby", "kernel", "main")
    )
)
