# state: the hook that shows results
# in ci: yes

# %%
import builtins, sys

type(sys.displayhook).__name__

# %%
_ + "!"

# %%
Out, _i, __

# %%
print("_" in vars(builtins), sys.__displayhook__)
