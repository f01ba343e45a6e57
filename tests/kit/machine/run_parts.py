"""Which tests `make test` runs, and which ones only `make test-rest`, as CI does.

`make test` has the tests of roost on this machine and on a Ray cluster, as `make run` shows it. The rest are

- tests on another cluster: Dask, Kubernetes and YARN
- `tests/fault` and `tests/browser`
- tests with the marker `rest`: a file of them takes minutes, and few changes need it. These are the tests of
  benchmarks, and those that show that other tests can fail.
"""

from __future__ import annotations

from kit.machine.worker_groups import group_of

_FOLDERS = ("tests/fault/", "tests/browser/")
_CLUSTERS = ("dask", "dask_tls", "kubernetes", "yarn")


def is_rest(test: str) -> bool:
    """True if the folder or the cluster of a test, which is given by its id, leaves it to `make test-rest`."""
    return test.startswith(_FOLDERS) or group_of(test) in _CLUSTERS
