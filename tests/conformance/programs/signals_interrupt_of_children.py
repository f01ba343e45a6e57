# state: SIGINT in a child process
# in ci: yes

# %% interrupt: 0.5
import subprocess

try:
    subprocess.run(["sleep", "30"])
except KeyboardInterrupt:
    print("interrupted")

# %%
child = subprocess.Popen(["sh", "-c", "kill -INT $$; echo survived"], stdout=subprocess.PIPE, text=True)
print(child.communicate()[0], child.returncode)
