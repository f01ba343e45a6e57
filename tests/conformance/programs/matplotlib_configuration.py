# state: the configuration of matplotlib in the working folder
# needs: matplotlib

# %% setup
(folder / "matplotlibrc").write_text("lines.linewidth: 7\n")

# %%
import matplotlib

print(matplotlib.rcParams["lines.linewidth"], matplotlib.matplotlib_fname())
