# state: descriptors of a child that is started without close_fds
# in ci: yes

# %%
import subprocess, sys

code = "import os; print(sorted(fd for fd in map(int, os.listdir('/proc/self/fd')) if os.path.exists(f'/proc/self/fd/{fd}') or fd > 2 and os.path.lexists(f'/proc/self/fd/{fd}')))"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, close_fds=False).stdout)
