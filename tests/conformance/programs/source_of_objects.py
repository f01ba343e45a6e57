# state: inspect and linecache

# %%
import inspect, json, linecache, textwrap


def mine(x):
    "doc"
    return x


print(
    inspect.getsource(mine),
    inspect.signature(mine),
    inspect.getfile(json),
    linecache.getline(json.__file__, 1),
)
print(inspect.getsource(textwrap.dedent)[:30], inspect.getsourcelines(mine)[1], inspect.getfile(mine))
