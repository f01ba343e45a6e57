# state: the name that the system shows
# in ci: yes

# %%
print(open("/proc/self/comm").read(), open("/proc/self/status").readline())
import os

print(
    sorted(
        {
            open(f"/proc/self/task/{tid}/comm").read().strip().split("/")[0]
            for tid in os.listdir("/proc/self/task")
        }
    )
)
