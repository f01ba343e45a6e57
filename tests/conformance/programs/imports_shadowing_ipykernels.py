# state: a user's module with the name of a module that ipykernel has imported
# may be executed: the folder has a module of this name
# in ci: yes

# %% setup
for name in ("decimal", "uuid", "tempfile_", "bdb", "html_"):
    (folder / f"{name}.py").write_text("mine = True")

# %%
import sys

print(sys.path[0] in ("", __import__("os").getcwd()))
import bdb, decimal

print(getattr(bdb, "mine", False), getattr(decimal, "mine", False))
