"""Kernels on the workers' machines of a Dask cluster."""
