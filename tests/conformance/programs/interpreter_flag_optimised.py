# state: the flag -O
# flags: -O

# %%
import sys

assert False
print(sys.flags.optimize, __debug__)
import subprocess, multiprocessing.spawn

print(subprocess._args_from_interpreter_flags())
