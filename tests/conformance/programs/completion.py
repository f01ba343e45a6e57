# state: completion
# in ci: yes

# %%
answer_of_all = 42
import os


class Thing:
    attribute_one = 1
    attribute_two = 2


thing = Thing()

# %% client
for code in ("answ", "os.path.joi", "thing.attribute_", "%time", "import collecti", "open('"):
    reply = kernel.client.complete(code, reply=True, timeout=60)["content"]
    print(code, reply["status"], sorted(reply["matches"])[:8], reply["cursor_start"], reply["cursor_end"])
