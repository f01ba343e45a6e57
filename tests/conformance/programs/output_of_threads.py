# state: the cell to which the output of a thread belongs

# %%
import threading

thread = threading.Thread(target=print, args=("from a thread",))
thread.start()
thread.join()
