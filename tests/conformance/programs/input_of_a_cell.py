# state: input and passwords
# in ci: yes

# %% stdin: Ada,secret
import getpass

name = input("who? ")
word = getpass.getpass("word? ")
print(name, len(word))

# %%
input("not allowed")

# %%
import sys

print(sys.stdin.read(), sys.stdin.isatty())
