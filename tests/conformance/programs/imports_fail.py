# state: the traceback of a failed import

# %%
import nothing_of_this_name

# %%
from json import nothing_of_this_name

# %%
import pathlib, sys

pathlib.Path("broken_module.py").write_text("def f(:\n")
sys.path.insert(0, "")
import broken_module
