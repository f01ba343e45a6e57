# state: the history of IPython
# in ci: yes

# %%
first = 1

# %%
manager = get_ipython().history_manager
print(manager.enabled, manager.session_number > 0, list(manager.get_range(raw=True)))

# %%
%history -n

# %%
%recall 1

# %%
In[1], len(In)
