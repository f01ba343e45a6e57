"""The container of a lease: its limits, its safety, and that no secret can be inspected."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from typing import Any

import pytest

from roost.launchers.protocol.messages import Assignment, Connection, Launch, Lease, Owner, Reserve
from roost.launchers.protocol.rpc import ServerKeys
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import shorten_id
from roost.scheduler.backends.docker import SPEC
from roost.scheduler.backends.docker.container_spec import (
    Sockets,
    build_archive,
    build_container,
    check_request,
    find_image,
    find_place,
)
from roost.scheduler.backends.docker.names import ID_LABEL, SERVICE_LABEL, SOCKETS_LABEL
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.scheduler.errors import ConfigError

SETTINGS = RoostDockerBackend(image="team/python:3", allowed_images=["team/*"])
LEASE = Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(), node_id="here")
KEYS = ServerKeys(public="p" * 40, secret="s" * 40, clients=frozenset(["c" * 40]))


def build(lease: Lease = LEASE, **settings: Any) -> dict[str, Any]:
    return build_container(lease, "team/python:3", RoostDockerBackend(**settings), "service", KEYS.public)


def test_a_container_has_no_rights_that_a_kernel_does_not_need() -> None:
    host = build()["HostConfig"]
    assert (host["CapDrop"], host["SecurityOpt"], host["Privileged"]) == (
        ["ALL"],
        ["no-new-privileges"],
        False,
    )
    assert not {"Binds", "Mounts", "PidMode", "IpcMode", "UTSMode", "UsernsMode", "CapAdd", "Devices"} & {
        *host
    }
    assert host["NetworkMode"] == "bridge"


def test_a_request_limits_memory_and_weighs_cpus() -> None:
    asked = replace(LEASE, request=Request(cpus=0.5, memory_bytes=1 << 30))
    host = build(asked)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["CpuShares"]) == (1 << 30, 1 << 30, 512)
    assert "NanoCpus" not in host
    assert build(asked, limit_cpus=True)["HostConfig"]["NanoCpus"] == 500_000_000
    assert not {"Memory", "CpuShares"} & {*build()["HostConfig"]}


@pytest.mark.parametrize(("cpus", "shares"), [(0.0001, 2), (1_000_000, 262_144)])
def test_the_weight_of_cpus_stays_within_the_engines_bounds(cpus: float, shares: int) -> None:
    assert build(replace(LEASE, request=Request(cpus=cpus)))["HostConfig"]["CpuShares"] == shares


def test_a_container_gets_exactly_its_gpus() -> None:
    host = build(replace(LEASE, device_ids=("1", "3")))["HostConfig"]
    assert host["DeviceRequests"] == [{"DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}]
    assert "DeviceRequests" not in build()["HostConfig"]


def test_no_secret_is_in_the_container_that_everybody_can_inspect() -> None:
    connection = Connection(key="the-kernels-key", curve_secretkey="the-kernels-secret")
    launch = Launch(
        launch_id="1", lease_id=LEASE.id, kernel_id="k", argv=("python3",), cwd="/", env={"TOKEN": "hush"},
        connection=connection,
    )  # fmt: skip
    assignment = Assignment(keys=KEYS, reserve=Reserve(lease=LEASE, is_granted=True, launch=launch))
    shown = json.dumps(build())
    assert not any(secret in shown for secret in (KEYS.secret, "the-kernels", "hush"))
    archive = build_archive(assignment, SETTINGS, "1000:100")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        folder, file = tar.getmembers()
        assert (folder.name, folder.mode, folder.uid) == ("roost", 0o755, 0)
        assert (file.name, file.mode, file.uid) == ("roost/start.zip", 0o400, 1000)
        content = tar.extractfile(file)
        assert content is not None
        start = json.loads(zipfile.ZipFile(io.BytesIO(content.read())).read("start.json"))
    assert start["assignment"]["keys"]["secret"] == KEYS.secret
    assert start["settings"]["unit"] == "container"


def test_a_user_by_name_can_read_the_archive() -> None:
    assignment = Assignment(keys=KEYS, reserve=Reserve(lease=LEASE, is_granted=True))
    archive = build_archive(assignment, SETTINGS, "jovyan")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.getmember("roost/start.zip")
        assert file.mode == 0o444
    blocks = -(-file.size // tarfile.BLOCKSIZE)
    assert len(archive) == file.offset_data + (blocks + 2) * tarfile.BLOCKSIZE, "nothing follows the end mark"
    assert not archive[-2 * tarfile.BLOCKSIZE :].strip(b"\0")


def test_a_kernel_may_name_an_allowed_image() -> None:
    asked = Request(options={"image": "team/r:4"})
    check_request(asked, SETTINGS)
    assert find_image(asked, SETTINGS) == "team/r:4"
    assert find_image(Request(), SETTINGS) == "team/python:3"


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"image": "other/r"}, "is not allowed here; the operator allows team/*."),
        ({"image": "team/x; rm -rf /"}, "is no name of an image"),
        ({"image": "--privileged"}, "is no name of an image"),
    ],
)
def test_other_images_are_refused(options: dict[str, str], refusal: str) -> None:
    with pytest.raises(ConfigError, match="image = ") as refused:
        check_request(Request(options=options), SETTINGS)
    assert refusal in str(refused.value)


def test_a_request_needs_an_image_and_whole_gpus() -> None:
    with pytest.raises(ConfigError, match=r"set c\.RoostDockerBackend\.image"):
        check_request(Request(), RoostDockerBackend())
    with pytest.raises(ConfigError, match="whole GPUs only"):
        check_request(Request(gpus=0.5), SETTINGS)


@pytest.mark.parametrize("option", ["privileged", "mounts", "network", "user", "cap_add", "devices"])
def test_a_kernelspec_cannot_ask_for_rights_users_or_networks(option: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no request option of the backend docker named {option}"):
        SPEC.check_options({option: "/:/host"})


@pytest.mark.parametrize("folder", ["/data", "~/work"])
def test_a_kernel_may_start_in_a_folder_of_its_container(folder: str) -> None:
    check_request(Request(options={"cwd": folder}), SETTINGS)


@pytest.mark.parametrize("folder", ["", "data", "../data", "~ada/work", "/data\n", "/da\0ta"])
def test_another_working_folder_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="must be a folder of the container, such as /data"):
        check_request(Request(options={"cwd": folder}), SETTINGS)


def test_a_container_gets_exactly_its_mounts() -> None:
    mount = {"Type": "volume", "Source": "models", "Target": "/models", "ReadOnly": True}
    host = build_container(LEASE, "team/python:3", SETTINGS, "service", KEYS.public, [mount])["HostConfig"]
    assert host["Mounts"] == [mount]


def test_a_kernel_gets_the_shared_memory_that_it_asks_for() -> None:
    asked = Request(options={"shm_size": "512MiB"}, memory_bytes=1 << 30)
    check_request(asked, SETTINGS)
    assert build(replace(LEASE, request=asked))["HostConfig"]["ShmSize"] == 512 << 20
    assert "ShmSize" not in build()["HostConfig"]


@pytest.mark.parametrize(
    ("size", "refusal"),
    [
        (
            "2GiB",
            "shm_size = 2 GiB is more than the operator allows, 1 GiB (c.RoostDockerBackend.max_shm_size).",
        ),
        ("1GiB", "shm_size = 1 GiB is part of the kernel's memory, which is 512 MiB: ask for more memory."),
        ("much", "shm_size = "),
        ("-1", "shm_size = "),
    ],
)
def test_other_amounts_of_shared_memory_are_refused(size: str, refusal: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_request(Request(options={"shm_size": size}, memory_bytes=512 << 20), SETTINGS)
    assert refusal in str(refused.value)


def test_a_container_can_be_kept_from_changing_its_image() -> None:
    settings = RoostDockerBackend(read_only=True)
    mount = {"Type": "volume", "Source": "models", "Target": "/models", "ReadOnly": True}
    host = build_container(LEASE, "team/python:3", settings, "service", KEYS.public, [mount])["HostConfig"]
    own, other = host["Mounts"]
    assert (host["ReadonlyRootfs"], list(host["Tmpfs"]), other) == (True, ["/tmp"], mount)
    assert (own["Type"], own["Target"], "Source" in own) == ("volume", "/roost", False)
    assert own["VolumeOptions"]["Labels"] == {SERVICE_LABEL: "service", ID_LABEL: shorten_id(LEASE.id)}
    assignment = Assignment(keys=KEYS, reserve=Reserve(lease=LEASE, is_granted=True))
    with tarfile.open(fileobj=io.BytesIO(build_archive(assignment, settings, "1000"))) as tar:
        assert tar.getnames() == ["start.zip"]
    assert (find_place(settings), find_place(SETTINGS)) == ("/roost", "/")
    assert "ReadonlyRootfs" not in build()["HostConfig"]


def test_without_root_a_container_listens_in_a_folder_of_this_machine() -> None:
    """Its user is the engine's own user outside, who owns the folder."""
    sockets = Sockets("/run/user/1000/podman/roost-kernels/1a", 1000, 100)
    content = build_container(LEASE, "i", SETTINGS, "service", KEYS.public, [], sockets)
    host = content["HostConfig"]
    assert (host["UsernsMode"], host["NetworkMode"]) == ("keep-id:uid=1000,gid=100", "slirp4netns")
    assert host["Mounts"] == [
        {
            "Type": "bind",
            "Source": sockets.folder,
            "Target": sockets.folder,
            "BindOptions": {"Propagation": "rprivate"},
        }
    ]
    assert content["Labels"][SOCKETS_LABEL] == sockets.folder
    other = RoostDockerBackend(image="i", network="none")
    assert (
        build_container(LEASE, "i", other, "service", KEYS.public, [], sockets)["HostConfig"]["NetworkMode"]
        == "none"
    )

    assignment = Assignment(keys=KEYS, reserve=Reserve(lease=LEASE, is_granted=True))
    archive = build_archive(assignment, SETTINGS, "1000:100", sockets, is_unlimited=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile("roost/start.zip")
        assert file is not None
        with zipfile.ZipFile(io.BytesIO(file.read())) as start:
            settings = json.loads(start.read("start.json"))["settings"]
    assert (settings["address"], settings["socket_folder"]) == ("", sockets.folder)
    assert settings["is_unlimited"]
