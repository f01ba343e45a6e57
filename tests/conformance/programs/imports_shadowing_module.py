# state: a user's module with the name of a module that the zygote has imported
# may be executed: the folder has a module of this name
# in ci: yes

# %% setup
for name in ("colorsys", "fractions", "sched"):
    (folder / f"{name}.py").write_text("mine = True")

# %%
import colorsys, fractions, sched

print([getattr(module, "mine", False) for module in (colorsys, fractions, sched)])
