# state: another home folder
# env: HOME={folder} XDG_CONFIG_HOME={folder}/config

# %%
import os, pathlib, site
print(pathlib.Path.home(), os.path.expanduser("~/x"), site.getuserbase())
!echo $HOME
