# state: dask on threads and on processes
# end: killed
# needs: dask

# %%
import dask, dask.bag, operator

print(
    dask.compute(dask.delayed(operator.add)(1, 2), scheduler="threads"),
    dask.bag.from_sequence(range(10), npartitions=2).map(abs).sum().compute(scheduler="sync"),
)
print(dask.compute([dask.delayed(operator.mul)(n, 2) for n in range(3)], scheduler="processes"))
