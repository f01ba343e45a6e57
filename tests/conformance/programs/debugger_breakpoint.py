# state: the debugger
# needs: debugpy

# %%
import time

# %% client
print(
    kernel.debug("initialize", clientID="t", adapterID="", linesStartAt1=True, columnsStartAt1=True)[
        "success"
    ]
)
print(kernel.debug("attach")["success"])
code = "def f(n):\n    m = n + 1\n    return m\nresult = f(1)"
path = kernel.debug("dumpCell", code=code)["body"]["sourcePath"]
answer = kernel.debug(
    "setBreakpoints", source={"path": path}, breakpoints=[{"line": 3}], sourceModified=False
)
print([each["verified"] for each in answer["body"]["breakpoints"]])
print(kernel.debug("configurationDone")["success"])
cell = kernel.send(code)
stopped = kernel.event("stopped")
thread = stopped["body"]["threadId"]
frame = kernel.debug("stackTrace", threadId=thread)["body"]["stackFrames"][0]
print(stopped["body"]["reason"], frame["name"], frame["line"])
scopes = kernel.debug("scopes", frameId=frame["id"])["body"]["scopes"]
variables = kernel.debug("variables", variablesReference=scopes[0]["variablesReference"])["body"]["variables"]
print([(each["name"], each["value"]) for each in variables if each["name"] in "mn"])
print(kernel.debug("continue", threadId=thread)["success"])
kernel.client.get_shell_msg(timeout=60)
print(kernel.debug("disconnect", restart=False, terminateDebuggee=False)["success"])

# %%
result
