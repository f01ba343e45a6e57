# state: sys.path
# in ci: yes

# %%
import sys

for each in sys.path:
    print(each)
print(
    sys.path_hooks and [getattr(hook, "__name__", hook) for hook in sys.path_hooks],
    [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path],
)
