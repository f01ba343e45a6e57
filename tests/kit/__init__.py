"""Modules with which the tests make fakes, clusters, notebooks and faults."""
