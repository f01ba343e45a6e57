# state: the names of temporary files
# in ci: yes

# %%
import os, pathlib, tempfile

with tempfile.NamedTemporaryFile() as file:
    _ = pathlib.Path("name").write_text(file.name)

# %% restart


# %%
import os, pathlib, tempfile

with tempfile.NamedTemporaryFile() as file:
    print("another name in each kernel:", file.name != pathlib.Path("name").read_text())
print(tempfile.gettempdir(), tempfile.gettempprefix())
with tempfile.TemporaryDirectory() as folder:
    print(oct(os.stat(folder).st_mode), os.path.dirname(folder))
