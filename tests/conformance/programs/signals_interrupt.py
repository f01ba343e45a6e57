# state: the handler of SIGINT
# in ci: yes

# %% interrupt: 0.3
import time

try:
    time.sleep(30)
finally:
    print("finally")

# %%
print("next cell")

# %% interrupt: 0.3
while True:
    pass
