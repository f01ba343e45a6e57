# state: objects that the collector leaves out

# %%
import gc

print(gc.get_freeze_count() < 10_000)
