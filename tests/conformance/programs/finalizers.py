# state: weakref finalizers
# in ci: yes

# %%
import weakref


class Thing:
    pass


thing = Thing()
finalizer = weakref.finalize(thing, print, "finalized")
print(finalizer.alive, finalizer.atexit, weakref.getweakrefcount(thing))
del thing

# %%
print(finalizer.alive, len(weakref.finalize._registry) >= 0)
