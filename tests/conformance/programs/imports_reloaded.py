# state: modules that are loaded again

# %%
import importlib, json, logging, pathlib, random, sys

before = json.loads
importlib.reload(json)
importlib.reload(random)
print(json.loads is before, json.loads("[1]"))
sys.path.insert(0, "")
pathlib.Path("program_module.py").write_text("x = 1")
import program_module

_ = pathlib.Path("program_module.py").write_text("x = 22")
importlib.invalidate_caches()
print(importlib.reload(program_module).x)
