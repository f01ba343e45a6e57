# state: the caches of the import machinery
# in ci: yes

# %%
import importlib, pathlib

try:
    import program_module
except ModuleNotFoundError as error:
    print(error)
_ = pathlib.Path("program_module.py").write_text("x = 1")
importlib.invalidate_caches()
import program_module

print(program_module.x, program_module.__file__, program_module.__spec__.origin, program_module.__cached__)
