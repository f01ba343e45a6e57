# state: completion by IPython alone

# %%
%config IPCompleter.use_jedi = False
import json

# %% client
for code in ("json.du", "json.JSONDecoder.", "d = {'key': 1}; d['", "~/", "%%ba"):
    print(code, sorted(kernel.client.complete(code, reply=True, timeout=60)["content"]["matches"])[:5])
