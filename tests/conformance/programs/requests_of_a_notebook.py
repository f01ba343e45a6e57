# state: the other requests of a notebook
# in ci: yes

# %%
x = 1

# %% client
info = kernel.client.kernel_info(reply=True, timeout=60)["content"]
print({key: info[key] for key in sorted(info) if key not in ("help_links", "banner")})
for code in ("for x in y:", "1", "def f(:", "  "):
    print(kernel.ask("is_complete_request", {"code": code}, "shell"))
print(
    kernel.client.history(hist_access_type="tail", n=1, raw=True, reply=True, timeout=60)["content"][
        "history"
    ][-1][2]
)
print(kernel.ask("comm_info_request", {}, "shell"))
content = {
    "code": "x",
    "silent": False,
    "store_history": False,
    "user_expressions": {"a": "x + 1", "b": "1/0"},
    "allow_stdin": False,
}
reply = kernel.ask("execute_request", content, "shell")
print(
    reply["status"],
    reply["execution_count"],
    reply["user_expressions"]["a"],
    reply["user_expressions"]["b"]["ename"],
)
