# state: what the debugger knows before it starts
# needs: debugpy
# in ci: yes

# %%
a, b = 1, "two"

# %% client
body = kernel.debug("debugInfo")["body"]
print({key: body[key] for key in sorted(body) if key not in ("tmpFilePrefix",)})
print(body["tmpFilePrefix"].endswith(f"ipykernel_{kernel.pid}/"))
variables = kernel.debug("inspectVariables")["body"]["variables"]
print(sorted((each["name"], each["value"]) for each in variables if each["name"] in "ab"))
