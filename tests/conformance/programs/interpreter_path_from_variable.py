# state: sys.path from PYTHONPATH
# env: PYTHONPATH={folder}/one:{folder}/two

# %% setup
for name in ("one", "two"):
    (folder / name).mkdir()
    (folder / name / "program_module.py").write_text(f"name = {name!r}")

# %%
import sys, program_module

print(program_module.name, program_module.__file__)
print([each for each in sys.path if each.startswith("/tmp")])
