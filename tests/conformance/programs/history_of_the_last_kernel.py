# state: the history of an earlier kernel
# in ci: yes

# %%
marked_cell = "found later"

# %%
get_ipython().history_manager.writeout_cache()

# %% restart


# %%
found = list(get_ipython().history_manager.search("marked_cell = *", raw=True, unique=True))
print([text for _, _, text in found])
print(get_ipython().history_manager.session_number > 1)
