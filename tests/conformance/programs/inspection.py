# state: inspection
# in ci: yes

# %%
def documented(x: int = 3) -> str:
    "Return nothing."

# %% client
for code in ("documented", "len", "documented.__call__", "missing"):
    reply = kernel.client.inspect(code, detail_level=1, reply=True, timeout=60)["content"]
    print(code, reply["found"], reply["data"].get("text/plain", ""))

# %%
documented?

# %%
int.bit_length??
