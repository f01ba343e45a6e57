"""This machine: its processes, agents and kernels, and its clock, disk, memory and network."""
