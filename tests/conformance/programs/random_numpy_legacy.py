# state: the seed of numpy's legacy random numbers
# needs: numpy
# in ci: yes

# %%
import pathlib, numpy

_ = pathlib.Path("drawn").write_text(repr(numpy.random.random(3).tolist()))

# %% restart


# %%
import pathlib, numpy

print(
    "another seed in each kernel:", repr(numpy.random.random(3).tolist()) != pathlib.Path("drawn").read_text()
)
numpy.random.seed(5)
print(numpy.random.random(2), numpy.random.permutation(5))
