# state: the history of folders

# %%
import os
os.mkdir("below")
%cd below

# %%
print(_dh[0] == os.path.dirname(os.getcwd()), len(_dh))
%cd -

# %%
%dhist
