# state: the command line that the system shows
# in ci: yes

# %%
import os, sys

argv = [part.decode() for part in open("/proc/self/cmdline", "rb").read().split(b"\0")][:-1]
while argv and not argv[-1]:
    argv.pop()
print(argv[:-1], os.path.basename(argv[-1]) == os.path.basename(sys.argv[2]))
import subprocess

shown = subprocess.run(["ps", "-o", "args=", "-p", str(os.getpid())], capture_output=True, text=True)
print("ipykernel_launcher -f" in shown.stdout)
