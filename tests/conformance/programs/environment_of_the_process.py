# state: the environment
# env: PROGRAM_VARIABLE=value
# in ci: yes

# %%
import os

for name, value in sorted(os.environ.items()):
    if name not in ("JPY_PARENT_PID",):
        print(name, "=", value)
