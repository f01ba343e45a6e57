# state: the specs of modules

# %%
import json, os, sys, ipykernel.kernelapp, IPython

for module in (json, os, ipykernel.kernelapp, IPython, sys):
    print(
        type(module.__spec__).__name__,
        module.__spec__.name,
        module.__spec__.origin,
        module.__spec__.loader.__class__.__name__,
        module.__spec__.cached,
    )
print(json.__spec__, repr(json), getattr(json.__spec__, "_initializing", None))
