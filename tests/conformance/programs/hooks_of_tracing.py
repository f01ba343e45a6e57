# state: tracers and profilers

# %%
import sys, threading

print(sys.gettrace(), sys.getprofile(), threading._trace_hook, threading._profile_hook)
seen = []
sys.setprofile(
    lambda frame, event, argument: seen.append(event) if frame.f_code.co_name == "called" else None
)


def called():
    return 1


called()
sys.setprofile(None)
print(seen)
