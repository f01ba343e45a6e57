# state: pdb in a cell

# %% stdin: p x,c
x = 5
import pdb

pdb.set_trace()
print("after")

# %%
1 / 0

# %% stdin: p x,q
%debug
