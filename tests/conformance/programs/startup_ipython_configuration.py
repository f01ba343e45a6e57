# state: IPython's configuration file
# never standby: a configuration file is code, which may read what a launch changes
# env: IPYTHONDIR={folder}/ipython

# %% setup
profile = folder / "ipython" / "profile_default"
profile.mkdir(parents=True)
(profile / "ipython_kernel_config.py").write_text("""
import os
c.InteractiveShellApp.exec_lines = ["from math import tau"]
c.InteractiveShell.ast_node_interactivity = "all"
c.InteractiveShellApp.extensions = ["autoreload"]
os.environ["PROGRAM_CONFIGURED"] = "yes"
""")

# %%
import os

tau > 6
os.environ.get("PROGRAM_CONFIGURED")
