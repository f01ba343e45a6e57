# state: the processors that the process may use
# in ci: yes

# %%
import os

print(os.sched_getaffinity(0), os.cpu_count(), os.sched_getscheduler(0))
print(
    {frozenset(os.sched_getaffinity(int(tid))) for tid in os.listdir("/proc/self/task")}
    == {frozenset(os.sched_getaffinity(0))}
)
