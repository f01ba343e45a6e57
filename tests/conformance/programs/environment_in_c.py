# state: the environment that C code reads
# env: PROGRAM_VARIABLE=value
# in ci: yes

# %%
import ctypes, os

getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
print(getenv(b"PROGRAM_VARIABLE"), getenv(b"HOME") == os.environb[b"HOME"], getenv(b"PROGRAM_OTHER"))
os.environ["PROGRAM_OTHER"] = "later"
print(getenv(b"PROGRAM_OTHER"))
os.putenv("PROGRAM_THIRD", "put")
print(getenv(b"PROGRAM_THIRD"), "PROGRAM_THIRD" in os.environ)


class Names(ctypes.Structure):
    pass


environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
names, n = set(), 0
while environ[n]:
    names.add(environ[n].partition(b"=")[0])
    n += 1
print(len(names) == n, sorted(names ^ {*os.environb, b"PROGRAM_THIRD"}))
