# state: the end by os._exit
# in ci: yes

# %%
import os

os._exit(7)
