# state: buffered data that two processes could write

# %%
import os

file = open("text", "w")
file.write("once\n")
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
file.close()
print(open("text").read())

# %%
import sys

print(
    sys.__stdout__.buffer.raw.tell() >= 0,
    len(sys.__stdout__.buffer.peek(0)) if hasattr(sys.__stdout__.buffer, "peek") else "",
)
