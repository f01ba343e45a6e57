"""Backends with one agent per node and user: leases and nodes come from the cluster manager."""
