# state: magics that reset and store

# %%
kept = 1
%store kept
%reset -f

# %%
print("kept" in globals(), "In" in globals())
%store -r kept
kept

# %%
%store -d kept
