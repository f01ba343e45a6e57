# state: values that belong to one thread

# %%
import threading

local = threading.local()
local.value = 1


def look():
    seen.append(hasattr(local, "value"))


seen = []
thread = threading.Thread(target=look)
thread.start()
thread.join()
print(seen, local.value)
