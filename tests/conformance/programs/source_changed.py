# state: lines of files that linecache remembers

# %%
import linecache, pathlib, sys

sys.path.insert(0, "")
_ = pathlib.Path("program_module.py").write_text("def f():\n    raise ValueError('first')\n")
import program_module

program_module.f()

# %%
import importlib, time

_ = pathlib.Path("program_module.py").write_text("# moved\n\n\ndef f():\n    raise ValueError('second')\n")
importlib.invalidate_caches()
importlib.reload(program_module).f()
