# state: the stack size that the C library took from the limit at its start

# %%
import ctypes, resource


class Attr(ctypes.Structure):
    _fields_ = [("space", ctypes.c_char * 64)]


attr, size = Attr(), ctypes.c_size_t()
libc = ctypes.CDLL(None)
libc.pthread_attr_init(ctypes.byref(attr))
libc.pthread_attr_getstacksize(ctypes.byref(attr), ctypes.byref(size))
print(size.value, resource.getrlimit(resource.RLIMIT_STACK))
