# state: locks of modules that are held by threads that no longer exist
# in ci: yes

# %%
import sys
from _thread import LockType, RLock

held = set()
for name, module in list(sys.modules.items()):
    for attribute, value in list(vars(module).items()) if hasattr(module, "__dict__") else ():
        if type(value) is LockType and value.locked():
            held.add(f"{name}.{attribute}")
        if type(value) is RLock and "owner=0 " not in repr(value):
            held.add(f"{name}.{attribute}")
print(sorted(held))
