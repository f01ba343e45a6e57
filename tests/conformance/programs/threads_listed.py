# state: the threads of the process
# in ci: yes

# %%
import threading

# Thread-1 of a plain kernel watches its parent: see threads_that_watch_the_parent.py.
threads = [thread for thread in threading.enumerate() if thread.name != "Thread-1"]
print(sorted(thread.name for thread in threads))
print(sorted(thread.name for thread in threads if thread.daemon))
print(threading.active_count() == len(threading.enumerate()))
