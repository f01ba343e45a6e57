# state: the terminal

# %%
import os, shutil

print(shutil.get_terminal_size(), os.environ.get("TERM"), os.environ.get("COLUMNS"))
try:
    os.get_terminal_size(1)
except OSError as error:
    print(error.strerror)
