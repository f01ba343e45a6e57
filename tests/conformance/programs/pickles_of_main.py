# state: pickles of classes of __main__

# %%
import pickle


class Point:
    def __init__(self, x):
        self.x = x


print(pickle.loads(pickle.dumps(Point(3))).x, Point.__module__, Point.__qualname__)
pickle.dump(Point(4), open("point.pickle", "wb"))

# %% restart


# %%
import pickle


class Point:
    pass


print(pickle.load(open("point.pickle", "rb")).x)
