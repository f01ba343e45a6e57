"""Kernels on machines that a person can log in to."""
