"""pytest-xdist runs each group of tests in one worker: all tests on one cluster, or the other tests of one file."""

from __future__ import annotations

import pytest

pytest.importorskip("xdist", reason="pytest-xdist is not installed: pip install '.[test]'")

from kit.machine.worker_groups import group_of


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/fault/test_ray.py::test_a_raylet", "tests/fault/test_ray.py"),
        ("tests/lifecycle/test_async_manager.py::test_ipc[local]", "tests/lifecycle/test_async_manager.py"),
        ("tests/lifecycle/test_async_manager.py::test_restart[ray-False]", "ray"),
        ("tests/lifecycle/test_dask_join.py::test_no_such_host", "dask"),
        ("tests/lifecycle/test_dask_notebooks.py::test_the_example[dask]", "dask"),
        ("tests/contract/test_backend.py::test_watching_ends_with_the_backend[dask_tls]", "dask_tls"),
        ("tests/contract/test_backend.py::test_claims[kubernetes]", "kubernetes"),
        ("tests/unit/scheduler/test_ray.py::test_it[ray]", "tests/unit/scheduler/test_ray.py"),
    ],
)
def test_the_group_of_a_test(test: str, group: str) -> None:
    assert group_of(test) == group
