"""The errors of a provisioner as Jupyter Server shows them, with a fake service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.fakes.service import FakeService, fake_service
from kit.jupyter.kernel_managers import the_start
from kit.jupyter.kernelspecs import kernelspecs
from roost.scheduler.client.client import disconnect
from roost.scheduler.errors import (
    BackendUnavailable,
    LaunchError,
    NoNodeEver,
    NoNodeNow,
    NotAllowed,
)


@pytest.fixture
def service(runtime_dir: Path) -> Iterator[FakeService]:
    with fake_service() as service:
        yield service
        disconnect()


async def test_jupyter_server_gets_errors_it_can_show(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
    from tornado.web import HTTPError

    kernels = AsyncMappingKernelManager(
        kernel_spec_manager=kernelspecs(tmp_path), connection_dir=str(tmp_path), root_dir=str(tmp_path)
    )
    statuses = {
        NotAllowed("ada may not."): 403,
        NoNodeEver("No node is so big."): 400,
        NoNodeNow("All GPUs are taken."): 503,
        LaunchError("It could not be started."): 500,
    }
    for problem, status in statuses.items():
        service.answers["start"] = problem
        with pytest.raises(HTTPError) as caught:
            await kernels.start_kernel(kernel_name="roosted")
        assert caught.value.status_code == status
        assert caught.value.log_message == str(problem)
    logged = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in logged] == list(map(str, statuses))
    assert not any(record.exc_info for record in logged), "the log has more than one line for a refusal"
    assert not the_start(service).owner.can_adopt, "without the extension"
    assert the_start(service).owner.application == "jupyter_server"
    del service.answers["start"]
    kernel_id = await kernels.start_kernel(kernel_name="roosted")
    service.answers["signal"] = BackendUnavailable("The agent does not answer.")
    with pytest.raises(HTTPError) as caught:
        await kernels.interrupt_kernel(kernel_id)
    assert (caught.value.status_code, str(caught.value)) == (503, "The agent does not answer.")
    await kernels.shutdown_kernel(kernel_id)
