# state: unusual values in the environment
# env: "PROGRAM_LINES=a b  c" PROGRAM_EMPTY= PROGRAM_UMLAUT=ä=ö
# in ci: yes

# %%
import os

print(
    {name: value for name, value in os.environ.items() if name.startswith("PROGRAM")},
    os.environb[b"PROGRAM_UMLAUT"],
)
