# state: a command that is a link to the interpreter
# python: {folder}/environment/bin/python
# may be executed: the path leads through a link

# %% setup
import os

os.symlink(os.path.dirname(os.path.dirname(python)), folder / "environment")

# %%
import sys

print(sys.executable, sys.prefix, sys.argv[0])
