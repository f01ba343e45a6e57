# state: widgets that capture output
# needs: ipywidgets

# %%
import ipywidgets

output = ipywidgets.Output()
with output:
    print("captured")

# %%
@ipywidgets.interact(n=(0, 5))
def show(n=2):
    print("n is", n)

# %%
ipywidgets.IntText(4)
