# state: matplotlib and its inline figures
# needs: matplotlib

# %%
import matplotlib, matplotlib.pyplot as plt

plt.plot([1, 2, 3])

# %%
print(matplotlib.get_backend(), plt.isinteractive(), matplotlib.matplotlib_fname().endswith("matplotlibrc"), plt.get_fignums())
%config InlineBackend.figure_formats

# %%
figure, axes = plt.subplots(figsize=(1, 1))
axes.set_title("x")
None
