"""A Dask cluster that tests share, and the records of its leases."""
