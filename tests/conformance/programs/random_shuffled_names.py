# state: the random numbers that ipykernel uses for its own ids
# in ci: yes

# %%
import pathlib

session = get_ipython().kernel.session
from jupyter_client.session import new_id

_ = pathlib.Path("ids").write_text(" ".join([session.session, new_id()]))

# %% restart


# %%
import pathlib
from jupyter_client.session import new_id

session = get_ipython().kernel.session
ids = [*pathlib.Path("ids").read_text().split(), session.session, new_id()]
print(len(set(ids)))
print(session.pid == __import__("os").getpid())
