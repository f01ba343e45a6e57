# state: the seed of numpy's generators, which the system gives
# needs: numpy

# %%
import pathlib, numpy

_ = pathlib.Path("drawn").write_text(repr(numpy.random.default_rng().random(3).tolist()))

# %% restart


# %%
import pathlib, numpy

drawn = repr(numpy.random.default_rng().random(3).tolist())
print("another seed in each kernel:", drawn != pathlib.Path("drawn").read_text())
print(numpy.random.default_rng(5).integers(0, 100, 6))
