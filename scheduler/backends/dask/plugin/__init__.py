"""The code that runs inside Dask's scheduler, workers and nannies. It is sent by value."""
