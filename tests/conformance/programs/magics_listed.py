# state: the magics, aliases and extensions
# in ci: yes

# %%
ip = get_ipython()
print(sorted(ip.magics_manager.magics["line"]), sorted(ip.magics_manager.magics["cell"]))
print(sorted(ip.alias_manager.aliases), sorted(ip.extension_manager.loaded), ip.events.callbacks.keys())
print(
    [t.__name__ for t in ip.input_transformers_cleanup], len(ip.input_transformer_manager.token_transformers)
)
