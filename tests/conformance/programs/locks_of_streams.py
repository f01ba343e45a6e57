# state: the locks of buffered files and of the standard streams

# %%
import sys, threading


def write():
    sys.__stdout__.write("")
    sys.__stdout__.flush()
    sys.__stderr__.flush()
    print("printed")


thread = threading.Thread(target=write, daemon=True)
thread.start()
thread.join(5)
print(thread.is_alive())
