"""`make test` and `make test-rest` share the tests by their folder and by their cluster."""

from __future__ import annotations

import pytest

from kit.machine.run_parts import is_rest


@pytest.mark.parametrize(
    ("test", "is_left"),
    [
        ("tests/unit/scheduler/backends/dask/test_manager.py::test_a_machine", False),
        ("tests/lifecycle/test_idle.py::test_an_idle_kernel[local]", False),
        ("tests/lifecycle/test_async_manager.py::test_restart[ray-False]", False),
        ("tests/lifecycle/test_async_manager.py::test_restart[dask-False]", True),
        ("tests/contract/test_backend.py::test_claims[kubernetes]", True),
        ("tests/lifecycle/test_yarn_master.py::test_cost", True),
        ("tests/lifecycle/test_idle.py::test_an_idle_kernel[ssh]", True),
        ("tests/fault/test_kills.py::test_a_service", True),
        ("tests/browser/test_notebooks.py::test_a_cell[local]", True),
    ],
)
def test_the_rest(test: str, is_left: bool) -> None:
    assert is_rest(test) == is_left
