# state: the end by os._exit

# %%
import os

os._exit(7)
