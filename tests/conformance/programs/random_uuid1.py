# state: the clock sequence and the last time of uuid1

# %%
import pathlib, uuid

_ = pathlib.Path("drawn").write_text(str(uuid.uuid1()))

# %% restart


# %%
import pathlib, uuid

ids = {str(uuid.uuid1()) for _ in range(1000)} | {pathlib.Path("drawn").read_text()}
print(len(ids))
