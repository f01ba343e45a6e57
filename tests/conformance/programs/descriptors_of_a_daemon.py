# state: descriptors in a daemon that a cell starts, after the kernel's end
# in ci: yes

# %%
import os, subprocess

daemon = subprocess.Popen(["sleep", "30"], close_fds=False, start_new_session=True)

# %%
import time

# Popen returns before the system has closed all descriptors that are not inherited. The new name comes after that, and
# the state S once the program has opened and closed its libraries.
state = ""
while not state.endswith("(sleep) S"):
    time.sleep(0.01)
    name, _, rest = open(f"/proc/{daemon.pid}/stat").read().rpartition(")")
    state = f"{name}) {rest.split()[0]}"
sockets = []
for name in os.listdir(f"/proc/{daemon.pid}/fd"):
    if int(name) > 2:
        sockets.append(os.readlink(f"/proc/{daemon.pid}/fd/{name}").partition(":")[0])
print(sockets)
daemon.kill()
print(daemon.wait())
