# state: IPython's configuration file
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
