# state: warnings of the compiler

# %%
1 is 1

# %%
"\d"

# %%
assert (1, "always true")
