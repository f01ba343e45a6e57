# state: what sitecustomize sees of the environment when the interpreter starts
# env: PYTHONPATH={folder}/site PROGRAM_MODULES={folder}/modules
# may be executed: code that runs when the interpreter starts
# in ci: yes

# %% setup
(folder / "site").mkdir()
(folder / "site" / "sitecustomize.py").write_text("""
import os, site
for each in os.environ.get("PROGRAM_MODULES", "").split(":"):
    if each: site.addsitedir(each)
""")
(folder / "modules").mkdir()
(folder / "modules" / "program_module.py").write_text("x = 42")

# %%
import program_module

program_module.x
