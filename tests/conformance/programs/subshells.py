# state: subshells
# needs: ipykernel>=7
# in ci: yes

# %%
import threading

# %% client
reply = kernel.ask("create_subshell_request", {})
print(reply["status"], kernel.ask("list_subshell_request", {})["subshell_id"] == [reply["subshell_id"]])
print(kernel.ask("delete_subshell_request", {"subshell_id": reply["subshell_id"]})["status"])

# %% client
busy = kernel.send("import os, time\nwhile not os.path.exists('beside'):\n    time.sleep(0.05)")
subshell = kernel.ask("create_subshell_request", {})["subshell_id"]
content = {"code": "open('beside', 'w').close()", "silent": True, "user_expressions": {}, "allow_stdin": False}
beside = kernel.client.session.msg("execute_request", content)
beside["header"]["subshell_id"] = subshell
kernel.client.shell_channel.send(beside)
kernel.finish(busy)
print(kernel.ask("delete_subshell_request", {"subshell_id": subshell})["status"])
