"""For authors of backends: the contract that every backend keeps, a fake agent, and a fake backend of each shape.

`BackendContract` is a mixin of pytest tests. Subclass it, and override the fixture `opener`:

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def opener(self):
            return partial(open_backend, lambda agents: MyBackend(agents))
"""

from __future__ import annotations

from .contexts import backend_context
from .contract import BackendContract, open_backend
from .fake_agent import FakeAgent
from .fake_backends import FakeBackend, FakePodCluster, local_backend, pod_backend
from .promises import BrokenPromise

__all__ = [
    "BackendContract",
    "BrokenPromise",
    "FakeAgent",
    "FakeBackend",
    "FakePodCluster",
    "backend_context",
    "local_backend",
    "open_backend",
    "pod_backend",
]
