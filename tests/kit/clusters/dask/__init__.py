"""A Dask cluster that tests share, the records of its leases, and the values of its ledger."""
