# state: compiled files

# %%
import pathlib, sys

_ = pathlib.Path("program_module.py").write_text("x = 1")
sys.path.insert(0, ".")
import program_module

print(
    sys.dont_write_bytecode, list(pathlib.Path("__pycache__").glob("*.pyc"))[0].name.count("program_module")
)
