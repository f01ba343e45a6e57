"""Real clusters of several nodes on this machine, for benchmarks, tests and the tour: of raylets and of Dask workers.

The files of this folder do not import roost.
"""
