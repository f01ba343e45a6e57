"""Modules with which roost's own tests make fakes, kernels, clusters and faults.

    fixtures    the fixtures of tests on real services and clusters
       │
       ▼
    clusters    real clusters on this machine: Ray, Dask, Kubernetes, YARN, SSH hosts; their faults, and users on them
       │
       ▼
    jupyter     kernelspecs, kernels and servers as Jupyter's users have them, and a browser
       │
       ▼
    fakes       a scheduler, a service, a client and policies without real kernels
       │
       ▼
    programs    small programs on plain and forked kernels, and ways to spoil a fork
       │
       ▼
    machine     this machine: processes, agents and tiny kernels; clock, disk, memory and network
       │
       ▼
    gate        which tests a change has to pass, and whether their failures let it land

A room imports only from itself and from the rooms below it. `roost.testing` has the fakes that authors of other
backends need too. The table in docs/contributors.md says what to take for which test.
"""

from pathlib import Path

TESTS = Path(__file__).parents[1]
"""The folder `tests`."""
ROOT = TESTS.parent
