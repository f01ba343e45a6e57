# state: the environment of child processes
# env: PROGRAM_VARIABLE=value
# in ci: yes

# %%
import os, subprocess

printed = subprocess.run(["env"], capture_output=True, text=True).stdout.splitlines()
print([line for line in sorted(printed) if not line.startswith(("_=", "JPY_PARENT_PID="))])
os.environ["PROGRAM_OTHER"] = "later"
del os.environ["PROGRAM_VARIABLE"]
print(
    subprocess.run("echo $PROGRAM_OTHER-$PROGRAM_VARIABLE", shell=True, capture_output=True, text=True).stdout
)
