# state: the module builtins
# in ci: yes

# %%
import builtins

print(sorted(vars(builtins)))
print(builtins.open, builtins.input.__qualname__, builtins.print, builtins.__import__, builtins.exec)
