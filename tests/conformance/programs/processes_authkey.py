# state: the secret key of multiprocessing

# %%
import multiprocessing, pathlib

_ = pathlib.Path("key").write_text(multiprocessing.current_process().authkey.hex())

# %% restart


# %%
import multiprocessing, pathlib

print(pathlib.Path("key").read_text() != multiprocessing.current_process().authkey.hex())
