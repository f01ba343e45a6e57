# state: comms in both directions
# in ci: yes

# %%
from comm import create_comm, get_comm_manager

got = []
comm = create_comm("target", data={"hello": 1})
comm.on_msg(lambda message: got.append(message["content"]["data"]))
comm.send({"value": 3})
get_comm_manager().register_target(
    "mine", lambda comm, message: got.append(("opened", message["content"]["data"]))
)

# %% client
client = kernel.client
client.shell_channel.send(
    client.session.msg("comm_open", {"comm_id": "own", "target_name": "mine", "data": {"a": 1}})
)
client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": "missing", "data": {}}))

# %%
print(got, sorted(get_comm_manager().targets))
