"""The submission of the application master, and the asks for containers."""

from __future__ import annotations

import base64
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import zmq

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.backends.yarn.archives import Archives, find_python
from roost.scheduler.backends.yarn.asking import build_ask, count_resources
from roost.scheduler.backends.yarn.derived_keys import DerivedKeys
from roost.scheduler.backends.yarn.hadoop_conf import keeps_containers
from roost.scheduler.backends.yarn.master.messages import CODE_ALIAS, MasterSettings, Resources
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.backends.yarn.submission import build_context
from roost.scheduler.errors import ConfigError, LaunchError

MASTER = MasterSettings(schedulers=("rm:8030",), public_key="p", secret_key="hidden", clients=("c",))


@pytest.fixture
def keys(tmp_path: Path) -> DerivedKeys:
    tmp_path.chmod(0o700)
    key_pair = load_key_pair(str(tmp_path / "identity.json"), name="yarn", section="RoostYarnBackend")
    return DerivedKeys(key_pair, "20000-30000")


def test_the_code_and_the_keys_travel_in_the_credentials_alone() -> None:
    settings = RoostYarnBackend(python="/opt/python3")
    context = build_context(
        "application_1_1",
        settings,
        MASTER,
        tags=("roost-x",),
        queue="lab",
        priority=3,
        keeps_containers=True,
    )
    (entry,) = context["am-container-spec"].pop("credentials")["secrets"]["entry"]
    assert entry["key"] == CODE_ALIAS
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(entry["value"])))
    assert json.loads(archive.read("settings.json"))["secret_key"] == "hidden"
    assert len(entry["value"]) < 200_000, "YARN keeps it in ZooKeeper, which takes 1 MB"
    assert "hidden" not in json.dumps(context)
    assert (context["queue"], context["priority"]) == ("lab", 3)
    assert context["application-tags"] == {"tag": ["roost", "roost-x"]}
    assert context["am-container-spec"]["commands"]["command"].startswith("exec /opt/python3 ")


@pytest.mark.parametrize(
    ("recovery", "preserves_work", "keeps"),
    [("true", "true", True), ("true", "false", False), ("false", "false", True)],
)
def test_containers_are_kept_only_if_the_resource_manager_survives_that(
    recovery: str, preserves_work: str, keeps: bool
) -> None:
    manager = "yarn.resourcemanager"
    conf = {
        f"{manager}.recovery.enabled": recovery,
        f"{manager}.work-preserving-recovery.enabled": preserves_work,
    }
    assert keeps_containers(conf) == keeps
    assert keeps_containers({}), "as a gateway shows it that hides the configuration"
    context = build_context(
        "a", RoostYarnBackend(), MASTER, tags=(), queue="q", priority=None, keeps_containers=keeps
    )
    assert context["keep-containers-across-application-attempts"] == keeps


def test_another_process_of_the_service_derives_the_same_keys(tmp_path: Path, keys: DerivedKeys) -> None:
    key_pair = load_key_pair(str(tmp_path / "identity.json"), name="yarn", section="RoostYarnBackend")
    again = DerivedKeys(key_pair, "20000-30000")
    assert again.keys(7) == keys.keys(7) != keys.keys(8)
    assert zmq.curve_public(again.keys(7).secret.encode()).decode() == keys.client_keys(7).server
    assert again.ports(7) == keys.ports(7) != keys.ports(8)
    assert len(set(keys.ports(7))) == 4
    assert all(20_000 <= port <= 30_000 for port in keys.ports(7))


@pytest.mark.parametrize("ports", ["", "20000", "30000-20000", "1-2", "0-70000"])
def test_wrong_ports_are_refused(keys: DerivedKeys, ports: str) -> None:
    with pytest.raises(ConfigError, match="lowest-highest"):
        DerivedKeys(keys._key_pair, ports)


def test_an_ask_has_the_node_the_label_and_no_secret_outside_its_assignment(keys: DerivedKeys) -> None:
    request = Request(cpus=0.1, gpus=2, resources={"fpga": 1}, options={"label": "vip", "python": "/py"})
    lease = Lease(id="l", kernel_id="k", owner=Owner(user="ada"), request=request, node_id="n1")
    settings = RoostYarnBackend(kernel_ports="40000-40999")
    ask = build_ask(lease, None, settings, keys, ("n1",), {"n1": "/r"}, expiry_s=600.0)
    assert ask.resources == Resources(memory_mb=1024, vcores=1, others={"yarn.io/gpu": 2, "fpga": 1})
    assert (ask.nodes, ask.racks, ask.label) == (("n1",), {"n1": "/r"}, "vip")
    assert " /py '$HADOOP_TOKEN_FILE_LOCATION' " in ask.command
    start = json.loads(base64.b64decode(ask.assignment_base64))
    assert start["assignment"]["keys"]["secret"] == keys.keys(ask.number).secret
    assert start["settings"]["ports"] == list(keys.ports(ask.number))
    assert start["settings"]["kernel_ports"] == [40_000, 40_999]
    assert start["assignment"]["reserve"]["lease"]["state"] == "held"
    assert keys.keys(ask.number).secret not in ask.lease + ask.command


def test_memory_is_rounded_up_to_whole_mebibytes() -> None:
    asked = count_resources(Request(memory_bytes=(256 << 20) + 1, cpus=2.5), RoostYarnBackend())
    assert asked == Resources(memory_mb=257, vcores=3)


@pytest.mark.parametrize("python", ["/bin/true; id", "$(id)", "a b", "`id`", "'"])
def test_a_shell_never_gets_more_than_a_path(python: str) -> None:
    with pytest.raises(ConfigError, match="must be a path"):
        find_python(Request(options={"python": python}), RoostYarnBackend())


class FakeHdfs:
    """WebHDFS, which knows one archive."""

    asked = 0

    async def get(self, url: str, **query: str) -> dict[str, object]:
        self.asked += 1
        if url == "http://namenode:9870/webhdfs/v1/envs/lab.tar.gz":
            return {"FileStatus": {"length": 7, "modificationTime": 1700000000123}}
        return {}


async def test_an_archive_is_described_as_yarn_compares_it(tmp_path: Path) -> None:
    hdfs = FakeHdfs()
    archives = Archives(hdfs, RoostYarnBackend())  # type: ignore[arg-type]
    file = tmp_path / "env.tgz"
    file.write_bytes(bytes(9))
    os.utime(file, ns=(0, 1_700_000_000_456_789_000))
    (local,) = await archives.find(Request(options={"archive": f"file://{file}"}))
    assert (local.size_bytes, local.modified_ms) == (9, 1_700_000_000_456)
    remote = Request(options={"archive": "webhdfs://namenode:9870/envs/lab.tar.gz"})
    for _ in range(2):
        (found,) = await archives.find(remote)
    assert (found.size_bytes, found.modified_ms, hdfs.asked) == (7, 1_700_000_000_123, 1)
    assert await archives.find(Request()) == ()
    with pytest.raises(LaunchError, match="HDFS has no archive"):
        await archives.find(Request(options={"archive": "webhdfs://namenode:9870/no.zip"}))
    with pytest.raises(LaunchError, match="No such file"):
        await archives.find(Request(options={"archive": "file:///no/such.zip"}))


@pytest.mark.parametrize(
    ("options", "python"),
    [
        ({}, "/opt/python"),
        ({"python": "/py"}, "/py"),
        ({"archive": "file:///e.zip"}, "environment/bin/python"),
        ({"archive": "file:///e.zip", "python": "bin/pypy"}, "environment/bin/pypy"),
    ],
)
def test_the_python_is_on_the_nodes_or_in_the_archive(options: dict[str, str], python: str) -> None:
    assert find_python(Request(options=options), RoostYarnBackend(python="/opt/python")) == python


@pytest.mark.parametrize("url", ["hdfs://namenode/e.zip", "e.zip", "file://host", "file:///e.rar"])
def test_other_archives_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="archive = "):
        find_python(Request(options={"archive": url}), RoostYarnBackend())
