# state: the threads that the system knows
# in ci: yes

# %%
import os, threading

known = {thread.native_id for thread in threading.enumerate()}
listed = {int(name) for name in os.listdir("/proc/self/task")}
print("unknown to the system:", len(known - listed))
print(
    "unknown to Python:", sorted(open(f"/proc/self/task/{tid}/comm").read().strip() for tid in listed - known)
)
