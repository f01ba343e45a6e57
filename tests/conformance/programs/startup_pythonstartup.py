# state: PYTHONSTARTUP, and startup files of IPython
# env: PYTHONSTARTUP={folder}/startup.py

# %% setup
(folder / "startup.py").write_text("started = 1")

# %%
print("started" in globals())
