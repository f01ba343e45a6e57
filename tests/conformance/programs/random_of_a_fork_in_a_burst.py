# state: random numbers of kernels that start at once

# %%
import os, pathlib, random

_ = pathlib.Path("drawn").write_text(f"{random.getrandbits(64)}\n{random.Random(os.getpid()).random() > 0}\n")

# %% restart


# %%
import pathlib, random

with open("drawn", "a") as file:
    file.write(f"{random.getrandbits(64)}\n")

# %% restart


# %%
import pathlib, random

drawn = {*pathlib.Path("drawn").read_text().split(), str(random.getrandbits(64))} - {"True"}
print(len(drawn))
