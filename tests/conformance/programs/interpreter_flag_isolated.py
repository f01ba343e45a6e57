# state: the flag -I
# flags: -I

# %%
import os, sys

print(sys.flags.isolated, sys.flags.ignore_environment, "" in sys.path, os.getcwd() in sys.path)
