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
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .contexts import backend_context
from .contract import BackendContract, open_backend
from .fake_agent import FakeAgent
from .fake_backends import FakeBackend, FakePodCluster, local_backend, pod_backend
from .lease_contract import LeaseContract
from .local_faults import LocalFaults
from .node_faults import NodeFaults
from .pod_faults import PodFaults
from .promises import BrokenPromise

if TYPE_CHECKING:
    from .lifecycle import KernelLifecycle

__all__ = [
    "BackendContract",
    "BrokenPromise",
    "FakeAgent",
    "FakeBackend",
    "FakePodCluster",
    "KernelLifecycle",
    "LeaseContract",
    "LocalFaults",
    "NodeFaults",
    "PodFaults",
    "backend_context",
    "local_backend",
    "open_backend",
    "pod_backend",
]


def __getattr__(name: str) -> Any:
    if name == "KernelLifecycle":  # late: needs pytest-asyncio, unlike the fake agent
        from .lifecycle import KernelLifecycle

        return KernelLifecycle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
