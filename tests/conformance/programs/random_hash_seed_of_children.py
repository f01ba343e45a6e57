# state: the seed of hashes that children get

# %%
import os, subprocess, sys

print(os.environ.get("PYTHONHASHSEED"), sys.flags.hash_randomization)
run = lambda: (
    subprocess.run([sys.executable, "-c", "print(hash('a'))"], capture_output=True, text=True).stdout
)
print("children differ:", run() != run())
