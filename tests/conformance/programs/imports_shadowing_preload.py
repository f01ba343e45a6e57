# state: a user's package with the name of a preloaded package
# may be executed: the folder has a module of this name

# %% setup
for name in ("numpy", "pandas"):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("mine = True")

# %%
import numpy, pandas

print(getattr(numpy, "mine", False), getattr(pandas, "mine", False))
