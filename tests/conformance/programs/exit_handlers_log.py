# state: what handlers write at the end

# %%
import atexit, os, sys

atexit.register(lambda: os.write(1, b"first registered, runs last\n"))
atexit.register(lambda: os.write(1, b"last registered, runs first\n"))


class Object:
    def __del__(self, write=os.write):
        write(1, b"deleted\n")


kept = Object()
import weakref

finalizer = weakref.finalize(Object, os.write, 1, b"finalized\n")

# %% client
kernel.shut_down()
for line in kernel.log().splitlines():
    if line.startswith(("first", "last", "deleted", "finalized")):
        print(line)
