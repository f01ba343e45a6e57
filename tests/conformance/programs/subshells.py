# state: subshells
# needs: ipykernel>=7

# %%
import threading

# %% client
reply = kernel.ask("create_subshell_request", {})
print(reply["status"], kernel.ask("list_subshell_request", {})["subshell_id"] == [reply["subshell_id"]])
print(kernel.ask("delete_subshell_request", {"subshell_id": reply["subshell_id"]})["status"])
