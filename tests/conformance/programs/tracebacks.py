# state: tracebacks
# in ci: yes

# %%
def inner(x):
    return 1 / x


def outer(x):
    return inner(x)


outer(0)

# %%
import json

json.loads("{")

# %%
try:
    outer(0)
except ZeroDivisionError as error:
    raise KeyError("x") from error

# %%
import traceback

try:
    outer(0)
except ZeroDivisionError:
    traceback.print_exc()

# %%
%tb

# %%
%xmode Minimal
outer(0)

# %%
for
