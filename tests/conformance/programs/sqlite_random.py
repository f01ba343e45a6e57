# state: the random numbers of sqlite

# %%
import pathlib, sqlite3

_ = pathlib.Path("drawn").write_text(str(sqlite3.connect(":memory:").execute("select random()").fetchone()))

# %% restart


# %%
import pathlib, sqlite3

print(
    pathlib.Path("drawn").read_text()
    != str(sqlite3.connect(":memory:").execute("select random()").fetchone())
)
