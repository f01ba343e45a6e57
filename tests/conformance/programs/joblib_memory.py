# state: the cache of joblib
# needs: joblib

# %%
import joblib

memory = joblib.Memory("cache", verbose=0)


@memory.cache
def work(n):
    print("computed", n)
    return n


work(1)
work(1)
