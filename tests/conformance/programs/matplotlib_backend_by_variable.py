# state: the backend of matplotlib
# needs: matplotlib
# env: MPLBACKEND=agg

# %%
import matplotlib, matplotlib.pyplot as plt

print(matplotlib.get_backend())
plt.plot([1])
plt.savefig("a.png")
import os

print(os.path.getsize("a.png") > 1000)
