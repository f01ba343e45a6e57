# state: the environment that the system shows
# env: PROGRAM_VARIABLE=value
# in ci: yes

# %%
import os

shown = dict(
    part.split(b"=", 1) for part in open("/proc/self/environ", "rb").read().split(b"\0") if b"=" in part
)
print(shown.get(b"PROGRAM_VARIABLE"), shown.get(b"HOME") == os.environb[b"HOME"])
