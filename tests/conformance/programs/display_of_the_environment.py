# state: the class that IPython's printer knows as that of os.environ
# in ci: yes

# %%
import os
from IPython.lib.pretty import pretty

for name in list(os.environ):
    if name != "HOME":
        del os.environ[name]
print(pretty(os.environ))
os.environ
