# state: the module __main__
# in ci: yes

# %%
import __main__, inspect, sys

value = 5
print(__main__.value, sys.modules["__main__"] is __main__, __main__.__dict__ is globals(), __name__)
print(sorted(name for name in dir(__main__) if name.startswith("__")), inspect.getmodule(lambda: 0))
