"""The submission of the application master, and the asks for containers."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import pytest
import zmq

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel.identity import load_identity
from roost.scheduler.backends.yarn.asking import build_ask, count_resources, find_python
from roost.scheduler.backends.yarn.derived_keys import DerivedKeys
from roost.scheduler.backends.yarn.master.messages import CODE_ALIAS, MasterSettings, Resources
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.backends.yarn.submission import build_context
from roost.scheduler.errors import ConfigError

MASTER = MasterSettings(schedulers=("rm:8030",), public_key="p", secret_key="hidden", clients=("c",))


@pytest.fixture
def keys(tmp_path: Path) -> DerivedKeys:
    tmp_path.chmod(0o700)
    identity = load_identity(str(tmp_path / "identity.json"), name="yarn", section="RoostYarnBackend")
    return DerivedKeys(identity, "20000-30000")


def test_the_code_and_the_keys_travel_in_the_credentials_alone() -> None:
    settings = RoostYarnBackend(python="/opt/python3")
    context = build_context("application_1_1", settings, MASTER, tags=("roost-x",), queue="lab", priority=3)
    (entry,) = context["am-container-spec"].pop("credentials")["secrets"]["entry"]
    assert entry["key"] == CODE_ALIAS
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(entry["value"])))
    assert json.loads(archive.read("settings.json"))["secret_key"] == "hidden"
    assert len(entry["value"]) < 200_000, "YARN keeps it in ZooKeeper, which takes 1 MB"
    assert "hidden" not in json.dumps(context)
    assert (context["queue"], context["priority"]) == ("lab", 3)
    assert context["application-tags"] == {"tag": ["roost", "roost-x"]}
    assert context["am-container-spec"]["commands"]["command"].startswith("exec /opt/python3 ")


def test_another_process_of_the_service_derives_the_same_keys(tmp_path: Path, keys: DerivedKeys) -> None:
    identity = load_identity(str(tmp_path / "identity.json"), name="yarn", section="RoostYarnBackend")
    again = DerivedKeys(identity, "20000-30000")
    assert again.keys(7) == keys.keys(7) != keys.keys(8)
    assert zmq.curve_public(again.keys(7).secret.encode()).decode() == keys.client_keys(7).server
    assert again.ports(7) == keys.ports(7) != keys.ports(8)
    assert len(set(keys.ports(7))) == 4
    assert all(20_000 <= port <= 30_000 for port in keys.ports(7))


@pytest.mark.parametrize("ports", ["", "20000", "30000-20000", "1-2", "0-70000"])
def test_wrong_ports_are_refused(keys: DerivedKeys, ports: str) -> None:
    with pytest.raises(ConfigError, match="lowest-highest"):
        DerivedKeys(keys._identity, ports)


def test_an_ask_has_the_node_the_label_and_no_secret_outside_its_assignment(keys: DerivedKeys) -> None:
    request = Request(cpus=0.1, gpus=2, resources={"fpga": 1}, options={"label": "vip", "python": "/py"})
    lease = Lease(id="l", kernel_id="k", owner=Owner(user="ada"), request=request, node_id="n1")
    ask = build_ask(lease, None, RoostYarnBackend(), keys, ("n1",), {"n1": "/r"}, expiry_s=600.0)
    assert ask.resources == Resources(memory_mb=1024, vcores=1, others={"yarn.io/gpu": 2, "fpga": 1})
    assert (ask.nodes, ask.racks, ask.label) == (("n1",), {"n1": "/r"}, "vip")
    assert " /py '$HADOOP_TOKEN_FILE_LOCATION' " in ask.command
    start = json.loads(base64.b64decode(ask.assignment_base64))
    assert start["assignment"]["keys"]["secret"] == keys.keys(ask.number).secret
    assert start["settings"]["ports"] == list(keys.ports(ask.number))
    assert start["assignment"]["reserve"]["lease"]["state"] == "held"
    assert keys.keys(ask.number).secret not in ask.lease + ask.command + str(ask.environment)


def test_memory_is_rounded_up_to_whole_mebibytes() -> None:
    asked = count_resources(Request(memory_bytes=(256 << 20) + 1, cpus=2.5), RoostYarnBackend())
    assert asked == Resources(memory_mb=257, vcores=3)


@pytest.mark.parametrize("python", ["/bin/true; id", "$(id)", "a b", "`id`", "'"])
def test_a_shell_never_gets_more_than_a_path(python: str) -> None:
    with pytest.raises(ConfigError, match="must be a path"):
        find_python(Request(options={"python": python}), RoostYarnBackend())
