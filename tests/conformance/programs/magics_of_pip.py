# state: magics that install packages

# %%
%pip --version
