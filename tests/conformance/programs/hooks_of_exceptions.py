# state: sys.excepthook and sys.unraisablehook
# in ci: yes

# %%
import sys

print(
    sys.excepthook.__qualname__, sys.__excepthook__, sys.unraisablehook, sys.breakpointhook, sys.displayhook
)


class Fails:
    def __del__(self):
        raise ValueError("unraisable")


fails = Fails()
del fails
