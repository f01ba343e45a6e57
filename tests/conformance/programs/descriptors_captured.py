# state: descriptors 1 and 2, which ipykernel may watch

# %%
import os, sys, time

os.write(1, b"to descriptor one\n")
time.sleep(0.5)

# %%
os.system("echo from a shell")
time.sleep(0.5)

# %%
print(getattr(sys.stdout, "_original_stdstream_copy", None) is not None)

# %% client
print("to descriptor one" in kernel.log(), "from a shell" in kernel.log())
