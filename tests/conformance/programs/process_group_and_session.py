# state: the process group and the session
# in ci: yes

# %%
import os

print(os.getpid() == os.getpgid(0) == os.getsid(0), os.getppid() > 1)
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError as error:
    print(error.strerror)
import subprocess

child = subprocess.Popen(["sleep", "5"])
print(os.getpgid(child.pid) == os.getpgid(0))
child.kill()
child.wait()
