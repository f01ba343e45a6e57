# state: the seed of hashes, with PYTHONHASHSEED
# env: PYTHONHASHSEED=42

# %%
import sys

print(sys.flags.hash_randomization, hash("roost"), hash(b"roost"), list({"a", "b", "c", "d"}))
