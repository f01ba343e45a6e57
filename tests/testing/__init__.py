"""For authors of backends: the contract that every backend keeps, a fake agent, and a fake backend of each shape.

`BackendContract` is a mixin of pytest tests. Subclass it, and override the fixture `opener`:

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def opener(self):
            return partial(open_backend, lambda agents: MyBackend(agents))
"""

from __future__ import annotations

from .contexts import backend_context as backend_context
from .contract import BackendContract as BackendContract
from .contract import open_backend as open_backend
from .fake_agent import FakeAgent as FakeAgent
from .fake_backends import FakeBackend as FakeBackend
from .fake_backends import FakePodCluster as FakePodCluster
from .fake_backends import local_backend as local_backend
from .fake_backends import pod_backend as pod_backend
