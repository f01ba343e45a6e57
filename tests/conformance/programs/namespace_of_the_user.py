# state: the names that a user finds
# in ci: yes

# %%
names = sorted(name for name in globals() if not name.startswith("_i"))
print(names)
print(sorted(get_ipython().user_ns_hidden))
%who
