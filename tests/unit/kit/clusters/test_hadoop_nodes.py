"""The pure parts of the YARN cluster: its downloads, addresses and files of settings."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kit.clusters.hadoop_nodes import HadoopNodes, Machine, build
from kit.clusters.hadoop_nodes.settings import PORTS, Layout, write
from roost.bench.clusters.cluster_folder import claim_network

MACHINES = {"nm1": Machine(), "nm2": Machine(gpus=2, gpu_model="T4", attributes={"zone": "b"})}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(build.VARIABLE, raising=False)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return build.cache()


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("java", "Java is missing"), ("mvn", "Maven is missing"), ("", "not downloaded yet: `make build-yarn`")],
)
def test_the_missing_part_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str, reason: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == missing else f"/bin/{name}")
    assert reason in str(build.why_not())
    if missing:
        assert "apt-get install --no-install-recommends default-jdk-headless maven" in str(build.why_not())
        with pytest.raises(RuntimeError, match=reason):
            build.build(report=str)


def test_an_installed_cluster_needs_no_maven(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "mvn" else f"/bin/{name}")
    build.jars().mkdir(parents=True)
    assert build.why_not() is None


def test_each_version_has_a_folder_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.jars().name.startswith(f"{build.VERSION}-")
    monkeypatch.setenv(build.VARIABLE, "3.3.6")
    assert build.jars().name.startswith("3.3.6-")


def test_half_a_download_does_not_count(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        (folder / "half.jar").touch()
        raise RuntimeError("no network")

    monkeypatch.setattr(build, "why_not_build", lambda: None)
    monkeypatch.setattr(build, "_download", fail)
    with pytest.raises(RuntimeError, match="no network"):
        build.build(report=str)
    assert [path.name for path in cache.iterdir()] == ["build.lock"]


def test_the_pom_and_the_code_name_one_version() -> None:
    pom = Path(build.__file__).with_name("pom.xml")
    (version,) = [each.text for each in ElementTree.parse(pom).iter() if each.tag.endswith("}hadoop")]
    assert version == build.VERSION


def layout(folder: Path, *resource_managers: str) -> Layout:
    return Layout(
        folder=folder, network="127.0.7", resource_managers=resource_managers or ("rm1",), machines=MACHINES
    )


def settings(folder: Path, name: str, file: str = "yarn-site") -> dict[str, str]:
    rows = ElementTree.parse(folder / "conf" / name / f"{file}.xml").getroot()
    return {str(row.findtext("name")): str(row.findtext("value")) for row in rows}


def test_each_setting_is_in_the_file_where_hadoop_reads_it(tmp_path: Path) -> None:
    changes = {
        "yarn.nodemanager.resource.memory-mb": 4096,
        "hadoop.rpc.protection": "privacy",
        "yarn.scheduler.capacity.schedule-asynchronously.enable": True,
        "yarn.example": "<&",
    }
    write(layout(tmp_path), changes, ["A", "B"])
    node = settings(tmp_path, "nm2")
    assert node["yarn.nodemanager.resource.memory-mb"] == "4096"
    assert node["yarn.example"] == "<&"
    assert node["yarn.nodemanager.address"] == "127.0.7.12:8041"
    assert node["yarn.nodemanager.env-whitelist"].endswith(",A,B")
    attributes = "yarn.nodemanager.node-attributes.provider.configured-node-attributes"
    assert node[attributes] == "gpu-model,STRING,T4:zone,STRING,b"
    assert settings(tmp_path, "nm2", "node-resources") == {"yarn.nodemanager.resource-type.yarn.io/gpu": "2"}
    assert settings(tmp_path, "rm1", "core-site")["hadoop.rpc.protection"] == "privacy"
    capacity = settings(tmp_path, "rm1", "capacity-scheduler")
    assert capacity["yarn.scheduler.capacity.schedule-asynchronously.enable"] == "true"
    assert "hadoop.rpc.protection" not in node


def test_clients_know_both_resource_managers_and_each_of_these_knows_which_it_is(tmp_path: Path) -> None:
    write(layout(tmp_path, "rm1", "rm2"), {}, [])
    client = settings(tmp_path, "client")
    assert client["yarn.resourcemanager.hostname.rm2"] == "127.0.7.3"
    assert "yarn.resourcemanager.ha.id" not in client
    assert [settings(tmp_path, name)["yarn.resourcemanager.ha.id"] for name in ("rm1", "rm2")] == [
        "rm1",
        "rm2",
    ]


def test_a_network_with_a_used_port_is_not_taken() -> None:
    cluster = HadoopNodes(Machine())
    with claim_network(cluster._is_free)[1] as claim:
        network = claim.getsockname()[0].rpartition(".")[0]
        assert cluster._is_free(network)
        with socket.create_server((f"{network}.11", PORTS["nm"][0])):
            assert not cluster._is_free(network)
