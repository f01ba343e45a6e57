# state: the variables and the counter after a restart
# in ci: yes

# %%
import os, sys

x = 1
os.environ["PROGRAM_SET"] = "1"
sys.path.append("/nowhere")
os.chdir("/")
sys.setrecursionlimit(5000)
os.umask(0o077)

# %% restart


# %%
import os, sys

print(
    "x" in globals(),
    os.environ.get("PROGRAM_SET"),
    "/nowhere" in sys.path,
    os.getcwd(),
    sys.getrecursionlimit(),
    oct(os.umask(0o022)),
)
get_ipython().execution_count
