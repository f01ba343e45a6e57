# state: the stack of the main thread

# %%
import resource, sys

print(resource.getrlimit(resource.RLIMIT_STACK))
sys.setrecursionlimit(20_000)


def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)


print(depth(5_000))
import re

print(len(re.findall("(a|b)*c", "ab" * 5000 + "c")))
import pickle

nested = None
for _ in range(400):
    nested = [nested]
print(len(pickle.dumps(nested)))
