"""The lifecycle suite of `roost.testing`, on each real backend."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from kit.clusters.own_machines import OWN_PYTHONS
from roost.testing import KernelLifecycle


class Lifecycle(KernelLifecycle):
    """The suite, on the backend of the fixture `backend`, which sets the environment variables of its cluster."""

    @pytest.fixture
    def roost_backend(self, backend: str) -> tuple[str, dict[str, Any]]:
        return backend, {}

    @pytest.fixture
    def kernel_python(self, backend: str) -> str:
        return "python3" if backend in OWN_PYTHONS else sys.executable


@pytest.mark.backends("local")
class TestLocal(Lifecycle):
    pass


@pytest.mark.backends("ray")
class TestRay(Lifecycle):
    pass


@pytest.mark.backends("dask")
class TestDask(Lifecycle):
    pass


@pytest.mark.backends("dask_tls")
class TestDaskTls(Lifecycle):
    pass


@pytest.mark.backends("docker")
class TestDocker(Lifecycle):
    pass


@pytest.mark.backends("podman")
class TestPodman(Lifecycle):
    pass


@pytest.mark.backends("kubernetes")
class TestKubernetes(Lifecycle):
    pass


@pytest.mark.backends("yarn")
class TestYarn(Lifecycle):
    pass


@pytest.mark.backends("ssh")
class TestSsh(Lifecycle):
    pass
