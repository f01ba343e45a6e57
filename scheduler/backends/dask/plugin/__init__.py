"""The code that runs inside Dask's scheduler, workers and nannies. roost sends this code pickled by value."""
