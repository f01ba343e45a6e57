# state: the working folder
# in ci: yes

# %%
import os, pathlib
print(os.getcwd(), os.readlink("/proc/self/cwd"), pathlib.Path().resolve(), os.environ.get("PWD") == os.getcwd())
print(os.path.abspath("x"), get_ipython().starting_dir)
%pwd

# %%
!pwd
