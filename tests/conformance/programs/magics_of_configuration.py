# state: the configuration that magics show

# %%
%config

# %%
%config InteractiveShell.ast_node_interactivity

# %%
%config IPCompleter
