"""Files of users and operators, and the service's own. A bad file is refused in a sentence, or put aside."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import zmq

from roost.bench.trace_files import read_trace
from roost.launchers.daemon.file_input import take_json
from roost.scheduler.backends.agent_per_kernel import load_lease
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.backends.kubernetes.pod_spec import PodTemplate
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.backends.spec import RequestOption
from roost.scheduler.backends.yarn.hadoop_conf import find_web_addresses, read_site
from roost.scheduler.cli.options import read_json
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError, RoostError
from roost.scheduler.input_files import read_input_yaml
from roost.scheduler.policies.loader import find_policy, load_policy
from roost.scheduler.policies.offline import read_snapshot

READERS: Mapping[str, Callable[[str], object]] = {
    "snapshot.json": read_snapshot,
    "trace.csv": read_trace,
    "policy.py": lambda path: load_policy("p", lambda: find_policy(f"{path}:Policy")),
    "config.json": lambda path: load_settings("local", {"config_file": path}),
    "pod.yaml": lambda path: PodTemplate(RoostKubernetesBackend(image="a", pod_template=path)),
}
LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 9}]\n" for n in range(9))
"""A short YAML text with 10^9 items."""


def find_refusal(read: Callable[[], object]) -> str:
    """Return the refusal's sentence; empty if `read` refuses nothing. Any other error is raised."""
    try:
        read()
    except RoostError as refusal:
        return refusal.user_message
    return ""


@pytest.mark.parametrize("name", READERS)
def test_the_file_of_a_user_may_be_a_link(tmp_path: Path, name: str) -> None:
    good = {
        "snapshot.json": '{"nodes": [{"id": "a"}]}',
        "trace.csv": "name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,1000,1024,0,0\n",
        "policy.py": "Policy = 7",
        "config.json": '{"RoostScheduler": {"idle_exit_s": 7}}',
        "pod.yaml": "metadata: {labels: {a: b}}",
    }
    (tmp_path / "target").write_text(good[name])
    (tmp_path / name).symlink_to("target")
    assert READERS[name](str(tmp_path / name))


def test_a_key_pair_may_be_a_link_and_must_fit(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    (tmp_path / "target").write_text(json.dumps({"public": public, "secret": secret}))
    (tmp_path / "identity.json").symlink_to("target")
    pair = load_key_pair(str(tmp_path / "identity.json"), name="ray", section="RoostRayBackend")
    assert (pair.public, pair.secret) == (public, secret)
    for found in (
        {"public": secret, "secret": secret},
        {"public": public},
        {"public": 1, "secret": "é" * 40},
    ):
        (tmp_path / "target").write_text(json.dumps(found))
        with pytest.raises(ConfigError, match="cannot be read or made"):
            load_key_pair(str(tmp_path / "identity.json"), name="ray", section="RoostRayBackend")


def test_deep_nesting_in_a_text_is_no_other_error() -> None:
    deep = "[" * 200_000
    assert read_json(deep) == deep
    with pytest.raises(ValueError, match="is not JSON"):
        load_lease(deep)
    with pytest.raises(ConfigError, match="must be"):
        RequestOption(name="gpus", kind=int, help="a number").read(deep)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]", "more than 100 levels"),
        (LAUGHS, "items"),
        ("a: 2024-01-01", "which JSON does not have"),
        ("1: a", "is no text"),
        ("[\n" * 2_000, "too many levels"),
    ],
)  # fmt: skip
def test_yaml_that_is_no_json_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_input_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("section", [7, "x", ["idle_exit_s"], None, {"policies": 7}, {"default_policy": {}}])
def test_a_section_of_another_form_is_one_sentence(tmp_path: Path, section: Any) -> None:
    file = tmp_path / "config.json"
    for document in ({"RoostScheduler": section}, {"RoostLocalBackend": section}, [section], section):
        file.write_text(json.dumps(document))
        assert "\n" not in find_refusal(lambda: load_settings("local", {"config_file": str(file)}))


@pytest.mark.parametrize(
    "content", ['<?xml version="1.0" encoding="x"?><a/>', '<?xml version="1.0" encoding="utf-32"?><a/>']
)
def test_a_site_file_of_another_encoding_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "yarn-site.xml").write_text(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_site(str(tmp_path))


def test_names_that_name_each_other_do_not_grow_without_bound(tmp_path: Path) -> None:
    rows = "".join(
        f"<property><name>{name}</name><value>{'${a}' * 1_000}</value></property>"
        for name in ("a", "yarn.resourcemanager.hostname")
    )
    (tmp_path / "yarn-site.xml").write_text(f"<configuration>{rows}</configuration>")
    assert all(len(address) < 10_000_000 for address in find_web_addresses(str(tmp_path)))


def test_a_file_of_another_user_that_cannot_be_renamed_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("[")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    assert take_json(tmp_path / "a.json", logging.getLogger("x")) is None
    assert "cannot be put aside: Permission denied" in caplog.text
