# state: random numbers of the system: os.urandom, secrets, uuid
# in ci: yes

# %%
import json, os, pathlib, secrets, uuid

_ = pathlib.Path("drawn").write_text(
    json.dumps([os.urandom(4).hex(), secrets.token_hex(4), str(uuid.uuid4())[:8]])
)

# %% restart


# %%
import json, os, pathlib, secrets, uuid

again = [os.urandom(4).hex(), secrets.token_hex(4), str(uuid.uuid4())[:8]]
print([one != two for one, two in zip(again, json.loads(pathlib.Path("drawn").read_text()))])
print(uuid.uuid4().version, uuid.uuid5(uuid.NAMESPACE_DNS, "a").version, uuid.uuid1().version)
