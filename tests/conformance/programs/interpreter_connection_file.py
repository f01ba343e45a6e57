# state: the connection file
# in ci: yes

# %%
import json, os, stat, ipykernel

file = ipykernel.get_connection_file()
info = json.load(open(file))
print(sorted(info), os.path.isabs(file), file.endswith(".json"))
print(oct(stat.S_IMODE(os.stat(file).st_mode)) in ("0o600", "0o644", "0o1600"))
print(
    info["key"].encode() == get_ipython().kernel.session.key,
    json.loads(ipykernel.get_connection_info()) == info,
)
