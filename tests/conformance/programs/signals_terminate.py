# state: the effect of SIGTERM and SIGHUP
# in ci: yes

# %%
import os, signal

print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGQUIT))

# %%
os.kill(os.getpid(), signal.SIGTERM)
import time

time.sleep(5)
print("survived")
