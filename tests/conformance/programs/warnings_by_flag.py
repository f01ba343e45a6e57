# state: warnings that a flag turns into errors
# flags: -W error::UserWarning

# %%
import sys, warnings

print(sys.warnoptions, sys.flags.dev_mode)
warnings.warn("an error")
