# state: subprocess
# in ci: yes

# %%
import os, subprocess, sys

print(
    subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.stdin.read()); sys.exit(3)"],
        input="given",
        capture_output=True,
        text=True,
    )
)
print(subprocess._USE_VFORK, subprocess._USE_POSIX_SPAWN, len(subprocess._active))
with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
    print(process.communicate(b"x"))
print(subprocess.getoutput("echo a; echo b >&2"))
with os.popen("echo popen") as pipe:
    print(pipe.read())
try:
    subprocess.run(["sleep", "20"], timeout=0.2)
except subprocess.TimeoutExpired as error:
    print(type(error).__name__, error.cmd, error.output)
