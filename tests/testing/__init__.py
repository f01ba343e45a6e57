"""For authors of backends: the contract that every backend keeps, a fake agent, and a fake backend of each shape.

`BackendContract` is a mixin of pytest tests. Subclass it, and override the fixture `opener`:

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def opener(self):
            return partial(open_backend, lambda agents: MyBackend(agents))

`LeaseContract` is a mixin for the case that the news about leases are late, missing or wrong. It needs another fixture:

    class TestMyLeases(LeaseContract):
        @pytest.fixture
        def faults_of_backend(self):
            return PodFaults(MyCluster)

`KernelLifecycle` is another one. It runs whole lives of kernels on an installed backend, which a fixture names:

    class TestMyKernels(KernelLifecycle):
        @pytest.fixture
        def roost_backend(self):
            return "mine", {"address": "mine.example.org:1234"}

The names are imported on first use, so that the fakes need no pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contexts import backend_context as backend_context
    from .contract import BackendContract as BackendContract
    from .contract import open_backend as open_backend
    from .fake_agent import FakeAgent as FakeAgent
    from .fake_backends import FakeBackend as FakeBackend
    from .fake_backends import FakePodCluster as FakePodCluster
    from .fake_backends import local_backend as local_backend
    from .fake_backends import pod_backend as pod_backend
    from .lease_contract import LeaseContract as LeaseContract
    from .lifecycle import KernelLifecycle as KernelLifecycle
    from .local_faults import LocalFaults as LocalFaults
    from .node_faults import NodeFaults as NodeFaults
    from .pod_faults import PodFaults as PodFaults
    from .promises import BrokenPromise as BrokenPromise

_HOMES = {
    "contexts": ("backend_context",),
    "contract": ("BackendContract", "open_backend"),
    "fake_agent": ("FakeAgent",),
    "fake_backends": ("FakeBackend", "FakePodCluster", "local_backend", "pod_backend"),
    "lease_contract": ("LeaseContract",),
    "lifecycle": ("KernelLifecycle",),
    "local_faults": ("LocalFaults",),
    "node_faults": ("NodeFaults",),
    "pod_faults": ("PodFaults",),
    "promises": ("BrokenPromise",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import the object of a public name, keep it here and return it. Raise `AttributeError` for another name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
