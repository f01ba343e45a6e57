# state: warnings that a variable filters
# env: PYTHONWARNINGS=ignore::RuntimeWarning

# %%
import sys, warnings

print(sys.warnoptions)
warnings.warn("hidden", RuntimeWarning)
warnings.warn("shown", UserWarning)
