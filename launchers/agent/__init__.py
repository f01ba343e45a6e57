"""The agent: roost's process on a node. It starts, watches, signals and stops kernels."""
