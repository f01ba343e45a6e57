# state: the rounding of floating point numbers
# in ci: yes

# %%
import ctypes, ctypes.util, math

libm = ctypes.CDLL(ctypes.util.find_library("m"))
print(libm.fegetround(), libm.fegetexcept() if hasattr(libm, "fegetexcept") else None)
print(0.1 + 0.2, math.sqrt(2), math.fsum([0.1] * 10), float.__getformat__("double"))
