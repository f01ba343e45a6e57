# state: the standard input of child processes

# %%
import subprocess

print(
    subprocess.run(["cat"], capture_output=True),
    subprocess.run(["sh", "-c", "read x; echo $?"], capture_output=True, text=True).stdout,
)
