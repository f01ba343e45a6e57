# state: attributes that a process inherits (prctl)
# in ci: yes

# %%
import ctypes

prctl = ctypes.CDLL(None).prctl
value = ctypes.c_int()
prctl(2, ctypes.byref(value))
print("parent's death:", value.value)
prctl(37, ctypes.byref(value))
print("subreaper:", value.value)
print(
    "dumpable:",
    prctl(3),
    "keep capabilities:",
    prctl(7),
    "timer slack:",
    prctl(30),
    "no new privileges:",
    prctl(39),
    "no huge pages:",
    prctl(42),
)
