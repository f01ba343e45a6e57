"""Which tests `make test` runs, and which ones only `make test-rest`, as CI does.

`make test` has the tests of roost on this machine and on a Ray cluster, as `make run` shows it. The rest are

- tests on another cluster: Dask, Docker, Kubernetes, YARN and SSH hosts
- `tests/fault` and `tests/browser`
- tests with the marker `rest`: they take minutes, and few changes need them. They test the benchmarks or other tests,
  or repeat one thing often.
"""

from __future__ import annotations

import re

_FOLDERS = ("tests/fault/", "tests/browser/")
_CLUSTERS = ("dask", "dask_tls", "docker", "podman", "rootless", "kubernetes", "yarn", "ssh")
_ON_A_CLUSTER = re.compile(
    r"tests/(?:contract|lifecycle)/.*(?<![a-z])(dask_tls|dask|docker|kubernetes|podman|ray|rootless|ssh|yarn)(?![a-z])"
)


def group_of(test: str) -> str:
    """Return the group of a test from its id: a cluster, which only one worker starts, or its file."""
    on_a_cluster = _ON_A_CLUSTER.match(test)
    return on_a_cluster[1] if on_a_cluster else test.partition("::")[0]


def is_rest(test: str) -> bool:
    """True if the folder or the cluster of a test, which is given by its id, leaves it to `make test-rest`."""
    return test.startswith(_FOLDERS) or group_of(test) in _CLUSTERS
