# state: the folder for temporary files, if a cell sets TMPDIR

# %%
import os, tempfile

os.mkdir("other")
os.environ["TMPDIR"] = os.path.abspath("other")
tempfile.tempdir = None
print(tempfile.gettempdir())
