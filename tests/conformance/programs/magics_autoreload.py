# state: modules that autoreload watches

# %%
%load_ext autoreload
%autoreload 2
import pathlib, sys; sys.path.insert(0, "")
_ = pathlib.Path("program_module.py").write_text("def f(): return 1\n")
import program_module
program_module.f()

# %%
_ = pathlib.Path("program_module.py").write_text("def f(): return 'changed'\n")
import time

time.sleep(0.01)

# %%
program_module.f()
