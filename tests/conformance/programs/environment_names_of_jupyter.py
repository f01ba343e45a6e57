# state: the variables from which libraries learn that they run in a notebook
# in ci: yes

# %%
import os

print("JPY_PARENT_PID" in os.environ, os.environ.get("JPY_PARENT_PID", "").isdigit())
print(
    sorted(
        name
        for name in os.environ
        if name.startswith(("JPY_", "KERNEL_", "MPL", "CLICOLOR", "PAGER", "GIT_", "TERM", "FORCE_COLOR"))
    )
)
