# state: the flag -X dev
# end: killed
# flags: -X dev

# %%
import asyncio, faulthandler, sys, warnings

print(sys.flags.dev_mode, faulthandler.is_enabled(), warnings.filters[0][0], sys._xoptions)
file = open("opened", "w")
del file
