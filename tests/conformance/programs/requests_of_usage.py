# state: what a kernel reports of its use
# needs: psutil, ipykernel>=6.9

# %%
x = 1

# %% client
reply = kernel.ask("usage_request", {})
usage = reply.get("content", reply)
print(
    sorted(usage),
    usage["pid"] == kernel.pid,
    usage["kernel_memory"] > 1e7 if "kernel_memory" in usage else None,
    usage["cpu_count"],
)
