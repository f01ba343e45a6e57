# state: SystemExit in a cell

# %%
import sys

sys.exit(3)

# %%
print("goes on")
