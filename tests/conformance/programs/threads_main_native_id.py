# state: the number by which the system knows the main thread
# in ci: yes

# %%
import os, threading

print(threading.main_thread().native_id == threading.get_native_id() == os.getpid())
print(
    threading.main_thread().ident == threading.get_ident(),
    threading.current_thread() is threading.main_thread(),
)
