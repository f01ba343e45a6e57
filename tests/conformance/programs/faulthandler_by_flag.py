# state: faulthandler, switched on by a flag
# flags: -X faulthandler

# %%
import faulthandler, sys

print(faulthandler.is_enabled(), sys._xoptions)
