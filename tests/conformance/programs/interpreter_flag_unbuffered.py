# state: the flag -u
# flags: -u -B

# %%
import sys

print(
    sys.flags.unbuffered, sys.__stdout__.line_buffering, sys.__stdout__.write_through, sys.dont_write_bytecode
)
