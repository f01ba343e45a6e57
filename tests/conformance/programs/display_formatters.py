# state: the formatters of IPython

# %%
formatter = get_ipython().display_formatter
print({mime: sorted(map(str, each.deferred_printers)) for mime, each in sorted(formatter.formatters.items())})
%precision 3
3.14159265
