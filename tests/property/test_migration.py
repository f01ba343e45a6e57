"""Kernelspecs of any form are migrated without a stack, a lost key, a printed secret or a trace after `--undo`.

ROOST_MESSAGES=10000 tries 10,000 of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from kit.jupyter.old_kernelspecs import HANDSHAKE, PROXIES, JupyterFolders, separate_jupyter
from roost.provisioners.migration.old_kernelspec import list_places
from roost.scheduler.cli import commands, main

KERNELSPECS = int(os.environ.get("ROOST_MESSAGES", "150"))
SECRET = "hunter2"
MEMORY = "/dev/shm"
CLASSES = (
    "processproxy.LocalProcessProxy",
    "distributed.DistributedProcessProxy",
    "yarn.YarnClusterProcessProxy",
    "k8s.KubernetesProcessProxy",
    "docker_swarm.DockerSwarmProcessProxy",
    "conductor.ConductorClusterProcessProxy",
    "of_others.OtherProcessProxy",
)
PROVISIONERS = ("yarn-provisioner", "kubernetes-provisioner", "distributed-provisioner", "docker-provisioner")
WORDS = st.sampled_from(
    [
        "",
        "1",
        "-1",
        "2500m",
        "6Gi",
        "a,b",
        "${NAME}",
        "{name}",
        "'",
        "--",
        "a b",
        "a=b",
        "true",
        "é\x1b[2J",
        "0..0",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
OPTIONS = st.dictionaries(
    st.sampled_from(
        [
            "image_name", "remote_hosts", "port_range", "launch_timeout", "authorized_users", "yarn_endpoint", "other",
            "load_balancing_algorithm", "impersonation_enabled",
        ]
    ),
    JSON,
    max_size=3,
)  # fmt: skip
VARIABLES = st.dictionaries(
    st.sampled_from(
        [
            "SPARK_OPTS", "LAUNCH_OPTS", "KERNEL_CPUS", "KERNEL_MEMORY", "KERNEL_VOLUMES", "KERNEL_USERNAME", "PATH",
            "EG_IMPERSONATION_ENABLED", "GP_PORT_RANGE", "PYSPARK_PYTHON", "HADOOP_CONF_DIR", "OTHER", "KERNEL_GID",
        ]
    ),
    WORDS | st.lists(WORDS, max_size=4).map(" ".join),
    max_size=4,
)  # fmt: skip
SECRETS = st.sampled_from(
    [
        {},
        {"SESSION_TOKEN": SECRET},
        {"URL": f"https://ada:{SECRET}@host/"},
        {
            "SPARK_OPTS": f"--master yarn --conf spark.hadoop.fs.s3a.secret.key={SECRET} --files https://a:{SECRET}@h/a"
        },
        {"LAUNCH_OPTS": f"--password {SECRET}"},
    ]
)


@st.composite
def kernelspecs(draw: st.DrawFn) -> dict[str, Any]:
    """Return a kernelspec of one of the systems, with a few parts removed, replaced or added."""
    launcher = draw(
        st.sampled_from(["launch_ipykernel.py", "run.sh", "launch_kubernetes.py", "launch_IRkernel.R"])
    )
    more = draw(
        st.lists(WORDS, max_size=3) | st.sampled_from([["--token", SECRET], [f"--password={SECRET}"]])
    )
    argv = ["python", f"/usr/share/kernels/x/{launcher}", *HANDSHAKE, *more]
    env: Any = {**draw(VARIABLES), **draw(SECRETS)}
    if draw(st.booleans()):
        proxy = {"class_name": f"{PROXIES}.{draw(st.sampled_from(CLASSES))}", "config": draw(OPTIONS)}
        stanza = {"process_proxy": proxy}
    else:
        stanza = {
            "kernel_provisioner": {
                "provisioner_name": draw(st.sampled_from(PROVISIONERS)),
                "config": draw(OPTIONS),
            }
        }
    document: dict[str, Any] = {"argv": argv, "display_name": "x", "language": "python", "env": env}
    document.update(stanza if draw(st.booleans()) and "process_proxy" in stanza else {"metadata": stanza})
    for _ in range(draw(st.integers(0, 3))):
        _mutate(draw, document)
    return document


def _mutate(draw: st.DrawFn, document: dict[str, Any]) -> None:
    """Remove, replace or add one part, at any depth."""
    place: Any = document
    while True:
        inner = [value for value in place.values() if isinstance(value, dict) and value]
        if not inner or draw(st.booleans()):
            break
        place = draw(st.sampled_from(inner))
    name = draw(st.sampled_from([*place, "other"]))
    if draw(st.booleans()):
        place.pop(name, None)
    else:
        place[name] = draw(JSON)


@pytest.fixture(scope="module")
def folders() -> Iterator[JupyterFolders]:
    base = MEMORY if os.path.isdir(MEMORY) else None
    parser = commands.build_parser()
    with tempfile.TemporaryDirectory(dir=base) as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "build_parser", lambda: parser)  # it takes as long as all else
        yield separate_jupyter(Path(root), patch)


def migrate(*arguments: str) -> tuple[int, str]:
    """Run the command. Return its exit code and everything that it has printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main.main(["migrate", *arguments])
    return code, out.getvalue() + err.getvalue()


@given(document=kernelspecs())
@settings(max_examples=KERNELSPECS, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_kernelspec(folders: JupyterFolders, document: dict[str, Any]) -> None:
    root = folders.user.parent.parent.parent
    for left in root.iterdir():  # by an example that has failed
        shutil.rmtree(left)
    old = folders.system / "kernels" / "any"
    old.mkdir(parents=True)
    (old / "kernel.json").write_text(json.dumps(document))
    before = folders.list_files()
    code, judged = migrate("any", "--check", "--json")
    (found,) = json.loads(judged)["kernelspecs"]
    assert code in (0, 1, 3)
    assert bool(found["problem"]) == (found["state"] in ("error", "refused"))
    _, difference = migrate("any", "--diff")
    assert folders.list_files() == before
    written_code, text = migrate("any")
    assert written_code == code
    written = folders.list_files()
    assert (written != before) == (found["state"] == "to write")
    if found["state"] == "to write":
        options = [line["option"] for line in found["lines"]]
        places = list_places(document)
        assert [
            place for place in places if not any(f"{each} ".startswith(f"{place} ") for each in options)
        ] == []
        again, _ = migrate("--all")
        assert (again, folders.list_files()) == (code, written)
        assert migrate("--undo")[0] == 0
        left = folders.list_files()
        assert {name: left[name] for name in left if left[name] is not None} == {
            name: before[name] for name in before if before[name] is not None
        }
    assert SECRET not in judged + difference + text
