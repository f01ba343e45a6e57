# state: the home folder
# in ci: yes

# %%
import getpass, os, pathlib

print(os.path.expanduser("~"), pathlib.Path.home(), getpass.getuser(), os.path.expandvars("$HOME"))
