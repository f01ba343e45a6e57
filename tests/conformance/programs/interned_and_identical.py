# state: objects that must be one

# %%
import copy, enum, pickle, re, sys, typing

print(
    sys.intern("abc" + "d") is sys.intern("abcd"),
    pickle.loads(pickle.dumps(re.I)) is re.I,
    copy.deepcopy(None) is None,
    () is tuple([]),
)
print(sys.getrefcount(object()) < 10, isinstance(1, typing.Hashable), 256 is 256)


class Colour(enum.Enum):
    RED = 1


print(pickle.loads(pickle.dumps(Colour.RED)) is Colour.RED)
