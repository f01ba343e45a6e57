"""A warm process that forks ipykernels. Runs in the kernel's own Python and imports nothing else of roost."""
