# state: pickles by value
# needs: cloudpickle

# %%
import cloudpickle, pickle

factor = 3


def times(x):
    return x * factor


print(pickle.loads(cloudpickle.dumps(times))(4), b"factor" in cloudpickle.dumps(times))
