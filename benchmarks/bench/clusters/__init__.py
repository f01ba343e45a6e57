"""Real clusters of several nodes on this machine, for benchmarks, tests and the tour: of raylets and of Dask workers.

They do not know roost.
"""
