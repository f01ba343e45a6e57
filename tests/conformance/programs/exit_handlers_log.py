# state: what handlers do at the end

# %%
import atexit, os, weakref

# Not to descriptor 1: ipykernel passes on what is written there, and may end before it has done so.
out = os.open("handlers", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
atexit.register(lambda: os.write(out, b"first registered, runs last\n"))
atexit.register(lambda: os.write(out, b"last registered, runs first\n"))


class Object:
    def __del__(self, write=os.write, out=out):
        write(out, b"deleted\n")


kept = Object()
finalizer = weakref.finalize(Object, os.write, out, b"finalized\n")

# %% client
kernel.shut_down()
print((kernel.folder / "handlers").read_text())
