# state: the umask
# in ci: yes

# %%
import os, stat

print(oct(os.umask(0o22)))
