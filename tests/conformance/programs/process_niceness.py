# state: the priority
# in ci: yes

# %%
import os
print(os.getpriority(os.PRIO_PROCESS, 0), os.nice(0))
print({os.getpriority(os.PRIO_PROCESS, int(tid)) for tid in os.listdir("/proc/self/task")})
!nice
