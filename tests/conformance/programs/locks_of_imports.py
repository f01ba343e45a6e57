# state: the locks of imports
# in ci: yes

# %%
import _imp, importlib, sys, threading

print(
    _imp.lock_held(),
    [
        name
        for name, lock in importlib._bootstrap._module_locks.items()
        if lock() is not None and lock().owner
    ],
)


def work():
    import colorsys, chunk_of_nothing


def safe():
    try:
        work()
    except ModuleNotFoundError as error:
        print(error)


thread = threading.Thread(target=safe, daemon=True)
thread.start()
thread.join(5)
print(thread.is_alive(), "colorsys" in sys.modules)
