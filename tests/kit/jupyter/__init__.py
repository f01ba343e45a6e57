"""Kernels, notebooks and servers as Jupyter's users have them."""
