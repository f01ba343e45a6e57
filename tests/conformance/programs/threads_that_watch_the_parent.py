# state: the thread that ends a kernel with its parent
# in ci: yes

# %%
import threading

print([type(thread).__name__ for thread in threading.enumerate() if thread.name == "Thread-1"])
