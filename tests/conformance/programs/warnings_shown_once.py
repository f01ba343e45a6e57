# state: which warnings were shown already
# in ci: yes

# %%
import warnings


def warn():
    warnings.warn("old", DeprecationWarning, stacklevel=2)


warn()
warn()

# %%
warn()
warnings.warn("for users")
warnings.warn("another", RuntimeWarning)
