# state: a command that is a script, which prepares the environment
# python: {folder}/python
# may be executed: the command is not the interpreter
# in ci: yes

# %% setup
path = folder / "python"
_ = path.write_text(f'#!/bin/sh\nexport PROGRAM_MODULE=loaded\ncd /usr\nexec {python} "$@"\n')
path.chmod(0o755)

# %%
import os

print(os.environ.get("PROGRAM_MODULE"), os.getcwd())
