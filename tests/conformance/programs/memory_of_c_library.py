# state: settings of the C library's allocator
# env: MALLOC_ARENA_MAX=2

# %%
import ctypes, os

libc = ctypes.CDLL(None)
pointer = libc.malloc
pointer.restype = ctypes.c_void_p
address = pointer(100)
print(address is not None, os.environ["MALLOC_ARENA_MAX"])
libc.free(ctypes.c_void_p(address))
