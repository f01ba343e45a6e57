# state: the seed of the module random
# in ci: yes

# %%
import json
import pathlib
import random

drawn = [random.random() for _ in range(3)]
_ = pathlib.Path("drawn").write_text(json.dumps(drawn))

# %% restart


# %%
import json
import pathlib
import random

again = [random.random() for _ in range(3)]
print("another seed in each kernel:", again != json.loads(pathlib.Path("drawn").read_text()))
random.seed(7)
print(random.random(), random.sample(range(100), 5))

# %% stdin: Ada
input("who? ")

# %% client
print("x", kernel.pid)

# %% interrupt: 0.3
import time

time.sleep(10)
