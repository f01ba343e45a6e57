# state: the modes of new files

# %%
import os, pathlib, stat
pathlib.Path("new").touch(); os.mkdir("folder")
print([oct(stat.S_IMODE(os.stat(name).st_mode)) for name in ("new", "folder")])
!touch other; stat -c %a other
