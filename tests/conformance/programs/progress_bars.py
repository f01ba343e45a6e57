# state: tqdm and its thread and locks
# needs: tqdm

# %%
import sys, tqdm, threading

for n in tqdm.tqdm(
    range(3), file=sys.stdout, bar_format="{l_bar}{bar:10}{n_fmt}/{total_fmt}", mininterval=0, miniters=1
):
    pass
print(
    tqdm.tqdm.monitor_interval,
    len(tqdm.tqdm._instances),
    tqdm.tqdm.get_lock().acquire(),
    tqdm.tqdm.get_lock().release(),
)

# %%
from tqdm.auto import tqdm as auto

print(auto.__module__)
