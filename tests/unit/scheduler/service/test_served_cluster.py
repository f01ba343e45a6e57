"""A service serves its cluster, or leaves and refers its clients to the service that serves it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from roost.scheduler.backends.base import Backend
from roost.scheduler.client.cluster_record import find_twins, read_record
from roost.scheduler.client.service_folder import service_folder
from roost.scheduler.errors import ConfigError, ServedElsewhere
from roost.scheduler.service.served_cluster import ServedCluster, check_other_place


class Named:
    """The part of a backend that names its cluster."""

    name = "Ray"  # for people

    def __init__(self, *places: str, cluster_id: str = "", problem: Exception | None = None) -> None:
        self.named: Sequence[str] = places
        self.cluster_id = cluster_id
        self.problem = problem

    def places(self) -> Sequence[str]:
        if self.problem is not None:
            raise self.problem
        return self.named


@pytest.fixture
def folders(runtime_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Return the folders of two services that run."""
    found, opened = [], []
    for name in ("scheduler-ray", "scheduler-ray-1"):
        folder = runtime_dir / name
        folder.mkdir(mode=0o700)
        (folder / "ready.json").write_text(json.dumps({"pid": os.getpid()}))
        opened.append(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(opened[-1], fcntl.LOCK_EX)
        found.append(folder)
    yield found[0], found[1]
    for descriptor in opened:
        os.close(descriptor)


def served(folder: Path, backend: Named, **options: str) -> ServedCluster:
    return ServedCluster(folder, "ray", cast(Backend, backend), options)


async def test_the_settings_of_a_new_service_lead_to_the_running_one(folders: tuple[Path, Path]) -> None:
    first, second = folders
    served(first, Named("192.0.2.1:1", cluster_id="c")).claim(has_kernels=False)
    with pytest.raises(ServedElsewhere, match=f"the service of {first} serves this cluster"):
        await served(second, Named("192.0.2.1:1")).check_settings()
    assert read_record(second) is None
    await served(second, Named("192.0.2.2:1")).check_settings()
    await served(second, Named("192.0.2.1:1"), python="x").check_settings()


async def test_settings_that_cannot_be_read_are_left_to_the_start(folders: tuple[Path, Path]) -> None:
    await served(folders[0], Named(problem=ConfigError("no such file"))).check_settings()


async def test_an_address_that_the_backend_refuses_is_left_to_the_start(folders: tuple[Path, Path]) -> None:
    first, second = folders
    served(first, Named("192.0.2.1:1", cluster_id="c")).claim(has_kernels=False)
    refused = Named(problem=ConfigError("Ray Client's address"))
    await served(second, refused, address="ray://192.0.2.1:1").check_settings()
    without = served(second, Named(), address="ray://192.0.2.1:1")
    await without.check_settings()
    without.claim(has_kernels=False)
    assert read_record(second) is None


async def test_one_cluster_by_its_identity(folders: tuple[Path, Path]) -> None:
    first, second = folders
    served(first, Named("192.0.2.1:1", cluster_id="c")).claim(has_kernels=False)
    backend = Named("192.0.2.2:1")
    other = served(second, backend, address="192.0.2.2:1")
    await other.check_settings()
    backend.cluster_id = "c"  # the cluster has answered
    with pytest.raises(ServedElsewhere):
        other.claim(has_kernels=False)
    other.claim(has_kernels=True)  # nobody else would serve its kernels
    assert list(find_twins(first)) == [second]
    # It has history now: its next start asks the cluster first.
    await other.check_settings()


def test_a_cluster_at_another_address_is_written_again(folders: tuple[Path, Path]) -> None:
    backend = Named("192.0.2.1:1")
    cluster = served(folders[0], backend)
    cluster.claim(has_kernels=False)
    assert service_folder("ray", {"address": "192.0.2.1:1"}) == folders[0]
    backend.named = ["192.0.2.9:1"]
    cluster.renew()
    assert service_folder("ray", {"address": "192.0.2.9:1"}) == folders[0]
    assert service_folder("ray", {"address": "192.0.2.1:1"}) != folders[0]


def test_a_backend_without_addresses_has_no_record(folders: tuple[Path, Path]) -> None:
    served(folders[0], Named("")).claim(has_kernels=False)
    assert not (folders[0] / "cluster.json").exists()


def test_another_cluster_that_does_not_answer_is_no_setting(folders: tuple[Path, Path]) -> None:
    """Beside a cluster that is served, it is a slip of the pen."""
    one, _ = folders
    with socket.create_server(("127.0.0.1", 0)) as there:
        answers = f"127.0.0.1:{there.getsockname()[1]}"
        check_other_place(one, ["127.0.0.1:9"])  # it has served none yet
        ServedCluster(one, "ray", cast(Backend, Named("127.0.0.1:9")), {}).claim(has_kernels=False)
        check_other_place(one, ["localhost:9"])
        check_other_place(one, [])
        check_other_place(one, [answers, "127.0.0.1:9"])
    with pytest.raises(
        ConfigError, match=rf"name the cluster at {answers}, where nothing answers.*127\.0\.0\.1:9"
    ):
        check_other_place(one, [answers, "127.0.0.1:9"])
