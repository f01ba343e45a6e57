# state: SIGCHLD, and the exit codes of child processes
# in ci: yes

# %%
import os, signal, subprocess

print(
    subprocess.run(["sh", "-c", "exit 3"]).returncode,
    subprocess.run(["sh", "-c", "kill -9 $$"]).returncode,
    os.system("exit 4"),
)
pid = os.fork()
if pid == 0:
    os._exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(signal.getsignal(signal.SIGCHLD))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError as error:
    print(error.strerror)
