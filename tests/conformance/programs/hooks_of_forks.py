# state: handlers that run at a fork

# %%
import os

seen = []
os.register_at_fork(
    before=lambda: seen.append("before"),
    after_in_parent=lambda: seen.append("parent"),
    after_in_child=lambda: seen.append("child"),
)
pid = os.fork()
if pid == 0:
    os._exit(len(seen))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen)
