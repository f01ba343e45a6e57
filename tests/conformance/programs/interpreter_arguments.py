# state: sys.argv and sys.orig_argv
# in ci: yes

# %%
import os, sys

print(sys.argv[0], len(sys.argv), sys.argv[1])
print(sys.orig_argv[:-1], os.path.basename(sys.orig_argv[0]))
print(os.path.isfile(sys.argv[2]), sys.orig_argv[-1] == sys.argv[2])
