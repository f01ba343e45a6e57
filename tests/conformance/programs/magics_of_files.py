# state: magics that read and write files

# %%
%%writefile script.py
import sys
made = __name__, sys.argv[1:]

# %%
%run script.py one two
print(made)

# %%
%load script.py

# %%
%pycat script.py

# %%
%ls
%who
%whos int
