# state: the output of processes that a cell forks
# in ci: yes

# %%
import os, sys

pid = os.fork()
if pid == 0:
    print("from the child", flush=True)
    os._exit(0)
_ = os.waitpid(pid, 0)
import time

time.sleep(0.3)
