# state: objects of the module os that a recorder could replace
# in ci: yes

# %%
import os, sys, threading, tempfile, signal

print(
    os.environ.__class__.__qualname__,
    os.environ.__class__.__module__,
    os.fork,
    os.getpid,
    threading.Thread.start.__qualname__,
    threading.Thread.start.__module__,
    tempfile.tempdir,
)
print(
    type(sys.modules).__name__,
    type(sys.path).__name__,
    sys.stdin.__class__.__module__,
    signal.signal.__module__,
)
import IPython.core.history as history

print(history.HistoryAccessor.init_db.__module__, history.HistoryManager.new_session.__module__)
import ipykernel.ipkernel, ipykernel.kernelapp

print(getattr(ipykernel.ipkernel, "sys", sys) is sys, ipykernel.kernelapp.Heartbeat.__module__)
