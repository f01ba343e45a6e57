# state: startup files of IPython's profile
# env: IPYTHONDIR={folder}/ipython

# %% setup
startup = folder / "ipython" / "profile_default" / "startup"
startup.mkdir(parents=True)
(startup / "00-first.py").write_text("import os; first = os.getcwd(); pid = os.getpid()")
(startup / "10-second.ipy").write_text("%alias_magic folder pwd\nsecond = len(first) > 0")

# %%
import os
print(first == os.getcwd(), second, pid == os.getpid())
%folder
