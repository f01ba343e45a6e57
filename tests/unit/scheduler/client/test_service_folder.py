"""The folder of a cluster's service: all names of a cluster lead to it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.scheduler.backends.kubernetes import kubeconfig
from roost.scheduler.backends.ray import checks
from roost.scheduler.backends.registry import backend_names, get_spec
from roost.scheduler.client.service_folder import find_cluster, find_other_options, service_folder

HEAD = "192.0.2.7:6379"

Write = Callable[[str], None]


@pytest.fixture(autouse=True)
def settings(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Let nothing of this machine name a cluster. Return a function that writes the operator's settings."""
    for name in backend_names():
        if variable := get_spec(name).address_variable:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(checks, "_raylets", list)
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.chmod(0o700)
    return lambda text: (tmp_path / "jupyter_roost_config.py").write_text(text) and None


@pytest.fixture
def serve(runtime_dir: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that makes this process the service of a folder, started with these options."""
    opened: list[int] = []

    def start(name: str, **options: str) -> Path:
        folder = runtime_dir / name
        folder.mkdir(mode=0o700)
        facts = {"pid": os.getpid(), "backend": name.split("-")[1], "options": options}
        (folder / "ready.json").write_text(json.dumps(facts))
        opened.append(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(opened[-1], fcntl.LOCK_EX)
        return folder

    yield start
    for descriptor in opened:
        os.close(descriptor)


def test_option_variable_setting_and_the_inside_of_a_kernel_name_one_service_of_ray(
    settings: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_option = service_folder("ray", {"address": HEAD})
    assert by_option.name.startswith("scheduler-ray-")
    assert service_folder("ray", {"address": f" {HEAD}/"}) == by_option
    settings(f"c.RoostRayBackend.address = {HEAD!r}")
    assert service_folder("ray", {}) == by_option
    settings("")
    monkeypatch.setattr(checks, "_raylets", lambda: [(HEAD, "node")])
    assert service_folder("ray", {}) == by_option, "the cluster of this machine"
    monkeypatch.setattr(checks, "_raylets", list)
    monkeypatch.setenv("RAY_ADDRESS", HEAD)  # as in a kernel, too
    assert service_folder("ray", {}) == by_option
    assert service_folder("ray", {"address": "192.0.2.8:6379"}) != by_option
    assert service_folder("dask", {"address": f"tcp://{HEAD}"}).name != by_option.name


def test_option_variable_setting_and_the_inside_of_a_kernel_name_one_service_of_dask(
    settings: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask", reason="dask is not installed")
    by_option = service_folder("dask", {"address": "tcp://Head:8786"})
    assert service_folder("dask", {"address": "head:8786"}) == by_option
    settings("c.RoostDaskBackend.address = 'head:8786'")
    assert service_folder("dask", {}) == by_option
    settings("")
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tcp://head:8786"}))
    assert service_folder("dask", {"address": str(file)}) == by_option
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://head:8786")  # as in a kernel, too
    assert service_folder("dask", {}) == by_option
    assert service_folder("dask", {"address": "tcp://head:8787"}) != by_option


def test_a_loopback_address_is_that_of_the_head_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_raylets", lambda: [("192.0.2.9:6379", "a"), (HEAD, "b")])
    monkeypatch.setattr(checks, "_is_own_address", lambda host: host == "192.0.2.7")
    assert find_cluster("ray", {"address": "127.0.0.1:6379"}) == HEAD
    assert find_cluster("ray", {"address": "localhost:6380"}) == "127.0.0.1:6380"


def test_the_cluster_of_a_kubeconfig_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(name: str, namespace: str) -> dict[str, object]:
        return {"name": name, "context": {"cluster": name, "user": "u", "namespace": namespace}}

    servers = {"one": "https://one:6443", "two": "https://two"}
    content = {
        "clusters": [{"name": name, "cluster": {"server": server}} for name, server in servers.items()],
        "contexts": [describe("one", "a"), describe("two", "b")],
        "current-context": "one",
    }
    file, copy = tmp_path / "config", tmp_path / "copy"
    for path in (file, copy):
        path.write_text(json.dumps(content))
    assert find_cluster("kubernetes", {"address": str(file)}) == "one:6443/a"
    assert find_cluster("kubernetes", {"address": f"{tmp_path / 'none'}:{copy}"}) == "one:6443/a"
    assert find_cluster("kubernetes", {"address": str(file), "namespace": "c"}) == "one:6443/c"
    assert find_cluster("kubernetes", {"address": str(file), "context": "two"}) == "two:443/b"
    monkeypatch.setenv("KUBECONFIG", str(copy))
    assert find_cluster("kubernetes", {}) == "one:6443/a"
    assert find_cluster("kubernetes", {"context": "three"}) == str(copy)


def test_a_file_that_no_program_can_read_names_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask and the files of a pod have such errors: commands still reach the service that runs."""
    (tmp_path / "namespace").write_bytes(b"\xff")
    monkeypatch.setattr(kubeconfig, "NAMESPACE_FILE", tmp_path / "namespace")
    assert find_cluster("kubernetes", {}) == ""


def test_the_cluster_of_a_folder_of_hadoop(tmp_path: Path) -> None:
    (tmp_path / "yarn-site.xml").write_text(
        "<configuration><property><name>yarn.resourcemanager.hostname</name><value>RM1</value></property>"
        "</configuration>"
    )
    assert find_cluster("yarn", {"address": str(tmp_path)}) == "rm1:8088"
    both = find_cluster("yarn", {"address": "http://rm2:8088,rm1:8088"})
    assert both == find_cluster("yarn", {"address": "http://RM1:8088,http://rm2:8088/"})


def test_a_link_to_the_socket_of_an_engine_names_the_same_engine(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var_run").symlink_to(tmp_path / "run")
    sockets = [f"unix://{tmp_path / name}/docker.sock" for name in ("run", "var_run")]
    assert [find_cluster("docker", {"address": socket}) for socket in sockets] == sockets[:1] * 2


@pytest.mark.parametrize(
    ("backend", "refused"), [("ray", f"ray://{HEAD}"), ("dask", f"http://{HEAD}"), ("docker", "tcp://h:1")]
)
def test_an_address_that_the_backend_refuses_is_that_of_no_other_service(backend: str, refused: str) -> None:
    assert find_cluster(backend, {"address": refused}) == refused


def test_without_a_name_the_only_service_without_an_address_is_meant(
    settings: Write, serve: Callable[..., Path], runtime_dir: Path
) -> None:
    """So commands reach the kernels while the cluster is down, or while the settings are broken."""
    assert service_folder("ray", {}) == runtime_dir / "scheduler-ray"
    running = serve("scheduler-ray-0123abcd")
    serve("scheduler-dask-0123abcd")
    serve("scheduler-ray-89abcdef", address="other:6379")
    assert service_folder("ray", {}) == running
    settings("c.RoostRayBackend.adress = 'head:1'")
    assert service_folder("ray", {}) == running
    assert service_folder("ray", {"address": HEAD}) != running
    serve("scheduler-ray-4567abcd")
    assert service_folder("ray", {}) == runtime_dir / "scheduler-ray"


def test_options_are_compared_without_the_address() -> None:
    running = {"address": "h:1", "gpus": 2, "config_file": "/etc/roost.py"}
    assert find_other_options({}, running) == {}
    assert (
        find_other_options({"address": "h:2", "gpus": 2, "config_file": Path("/etc/roost.py")}, running) == {}
    )
    assert find_other_options({"gpus": 1, "cpus": 4}, running) == {"gpus": 1, "cpus": 4}
