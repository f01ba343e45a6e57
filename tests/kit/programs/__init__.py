"""Small programs that run on a plain kernel and on forked ones, and must print the same.

program      a file of `tests/conformance/programs/`: its header and its cells
kinds        starts kernels: `fresh` (executed), `fork`, `standby`, `preload`
session      runs a program's cells on a kernel, and returns its transcript
spoils       ways to spoil a fork on purpose, so that the comparison is seen to fail
"""
