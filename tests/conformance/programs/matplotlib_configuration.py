# state: the configuration of matplotlib in the working folder
# needs: matplotlib
# may be executed: a warm process that has matplotlib has not read the folder's file

# %% setup
(folder / "matplotlibrc").write_text("lines.linewidth: 7\n")

# %%
import matplotlib

print(matplotlib.rcParams["lines.linewidth"], matplotlib.matplotlib_fname())
