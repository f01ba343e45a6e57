# state: the limit and the number of descriptors
# in ci: yes

# %%
import os, resource

print(resource.getrlimit(resource.RLIMIT_NOFILE))
files = [os.open(os.devnull, os.O_RDONLY) for _ in range(300)]
print(len(set(files)), all(not os.get_inheritable(each) for each in files))
for each in files:
    os.close(each)
