# state: the folder for temporary files, which tempfile remembers
# env: TMPDIR={folder}
# in ci: yes

# %%
import tempfile

print(tempfile.gettempdir())
with tempfile.TemporaryFile() as file:
    print(file.write(b"abc"))
