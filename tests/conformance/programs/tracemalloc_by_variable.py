# state: tracemalloc, switched on by a variable
# env: PYTHONTRACEMALLOC=3

# %%
import tracemalloc

print(tracemalloc.is_tracing(), tracemalloc.get_traceback_limit())
