"""Commands of many forms, and the command in the place of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from roost.provisioners.migration import Translation

TranslateNew = Callable[..., Translation]
IPYKERNEL = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
IN_TEXT = "-m ipykernel_launcher -f '{connection_file}'"
HANDSHAKE = [
    "--kernel-id",
    "{kernel_id}",
    "--response-address",
    "{response_address}",
    "--public-key",
    "{public_key}",
]
OLD_HANDSHAKE = [
    "--RemoteProcessProxy.kernel-id",
    "{kernel_id}",
    "--RemoteProcessProxy.public-key={public_key}",
]
LAUNCH = f"/k/launch_ipykernel.py {' '.join(HANDSHAKE)}"


def describe(argv: list[str], **others: Any) -> dict[str, Any]:
    """Return a kernel.json of Gateway Provisioners for this machine."""
    stanza = {"provisioner_name": "distributed-provisioner", "config": {}}
    document = {
        "argv": argv,
        "display_name": "Old",
        "language": "python",
        "metadata": {"kernel_provisioner": stanza},
    }
    return document | others


def get_argv(translation: Translation) -> list[str]:
    assert translation.kernel_json is not None, translation.refusal
    return list(translation.kernel_json["argv"])


def launch(*before: str, after: list[str] = HANDSHAKE) -> list[str]:
    return [*before, "/k/launch_ipykernel.py", *after]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (launch("python"), ["python", *IPYKERNEL]),
        (
            launch("/opt/py/bin/python3.11", "-u", after=OLD_HANDSHAKE),
            ["/opt/py/bin/python3.11", "-u", *IPYKERNEL],
        ),
        (launch(), ["python", *IPYKERNEL]),
        (["/k/bin/run.sh", *OLD_HANDSHAKE], ["python", *IPYKERNEL]),
        (["bash", "-x", "/k/bin/run.sh", "{connection_file}", *OLD_HANDSHAKE], ["python", *IPYKERNEL]),
        (launch("nice", "-n", "5", "python"), ["nice", "-n", "5", "python", *IPYKERNEL]),
        (launch("conda", "run", "-n", "ml", "python"), ["conda", "run", "-n", "ml", "python", *IPYKERNEL]),
        ([*HANDSHAKE, *launch("python", after=[])], ["python", *IPYKERNEL]),
        (launch("sudo", "-E", "-u", "eve", "python3"), ["python3", *IPYKERNEL]),
    ],
)
def test_python(translate_new: TranslateNew, old: list[str], new: list[str]) -> None:
    assert get_argv(translate_new(describe(old))) == new


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"source /e/activate && exec python {LAUNCH}", f"source /e/activate && exec python {IN_TEXT}"),
        (f"spark-submit --master yarn {LAUNCH}", f"python {IN_TEXT}"),
        ('exec python /k/launch_ipykernel.py "$@"', f"exec python {IN_TEXT}"),
        (f"python {LAUNCH} 2>/tmp/log; echo ended", f"python {IN_TEXT} 2>/tmp/log; echo ended"),
    ],
)
def test_python_in_the_text_of_a_shell(translate_new: TranslateNew, old: str, new: str) -> None:
    """The rest of the text stays. `2>` begins a redirection; its number is no word of the launcher's."""
    found = get_argv(translate_new(describe(["bash", "-lc", old, "bash", *HANDSHAKE])))
    assert found[:2] == ["bash", "-lc"]
    start = "--IPKernelApp.exec_lines" if "spark" in old else ""
    assert found[2].partition(f" '{start}")[0] == new if start else found[2] == new


@pytest.mark.parametrize("engine", ["docker", "/usr/bin/podman"])
def test_the_connection_file_is_never_given_to_docker(translate_new: TranslateNew, engine: str) -> None:
    inner = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    options = [
        "--rm",
        "-it",
        "-eDB_PASSWORD=hunter2",
        "--memory",
        "4g",
        "--cpus=1.5",
        "-v",
        "/data:/data",
        "--gpus=2",
    ]
    found = translate_new(describe(["sudo", engine, "run", *options, "img:1", *inner]))
    assert get_argv(found) == inner
    assert found.kernel_json is not None
    config = found.kernel_json["metadata"]["kernel_provisioner"]["config"]
    assert config == {
        "backend": "docker",
        "cpus": 1.5,
        "memory": "4GiB",
        "gpus": 2,
        "options": {"image": "img:1"},
    }
    assert found.kernel_json["env"] == {"DB_PASSWORD": "hunter2"}
    assert "hunter2" not in str(found.lines)
    (volume,) = [line for line in found.lines if line.option == "argv --volume"]
    assert (volume.outcome, "set options.volumes, if the operator allows it" in volume.text) == (
        "decision",
        True,
    )


def test_an_option_of_ipykernel_stays(translate_new: TranslateNew) -> None:
    old = ["python", "/k/launch_ipykernel.py", *HANDSHAKE, "--IPKernelApp.matplotlib=inline", "--debug"]
    found = translate_new(describe(old))
    assert get_argv(found) == ["python", *IPYKERNEL, "--IPKernelApp.matplotlib=inline"]
    assert "none" in {line.outcome for line in found.lines if line.option == "argv --debug"}


def test_a_class_for_the_images_of_theirs(translate_new: TranslateNew) -> None:
    """The launcher's own option wins over the variable, and a text that is no name is left out."""
    own = ["--IPKernelApp.kernel_class=lab.Kernel"]
    for name, options in (("lab.Kernel", own), ("lab.Kernel; rm", [])):
        found = translate_new(describe(launch("python"), env={"KERNEL_CLASS_NAME": name}))
        assert get_argv(found) == ["python", *IPYKERNEL, *options]
    for flag in ("--kernel-class-name", "--kernel_class_name"):
        old = launch("python", after=[*HANDSHAKE, flag, "lab.Kernel"])
        found = translate_new(describe(old, env={"KERNEL_CLASS_NAME": "other.Kernel"}))
        assert get_argv(found) == ["python", *IPYKERNEL, *own]


def test_the_launcher_says_the_language(translate_new: TranslateNew) -> None:
    old = ["Rscript", "/k/launch_IRkernel.R", *HANDSHAKE]
    argv = get_argv(translate_new(describe(old, language="text")))
    assert argv == ["R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"]


def test_a_launcher_of_an_unknown_language_stays_behind_the_bridge(translate_new: TranslateNew) -> None:
    old = ["/opt/own/launcher", *HANDSHAKE]
    found = translate_new(describe(old, language="forth"))
    assert get_argv(found) == ["python", "-m", "roost.launchers.bridge", "{connection_file}", *old]
    assert found.needs_decision


def test_keep_launcher(translate_new: TranslateNew) -> None:
    old = ["python", "/k/launch_ipykernel.py", *HANDSHAKE]
    env = {"LAUNCH_OPTS": "--customAppName lab"}
    found = translate_new(describe(old, env=env), keep_launcher=True)
    assert get_argv(found) == ["python", "-m", "roost.launchers.bridge", "{connection_file}", *old]
    assert found.kernel_json is not None
    assert found.kernel_json["env"] == env
    assert not found.needs_decision
    assert {line.outcome for line in found.lines if line.option == "argv --kernel-id"} == {"kept"}


def test_a_launcher_without_a_public_key_cannot_stay(translate_new: TranslateNew) -> None:
    found = translate_new(describe(launch("python", after=HANDSHAKE[:4])), keep_launcher=True)
    assert get_argv(found) == ["python", *IPYKERNEL]
    assert "decision" in {line.outcome for line in found.lines if line.option == "argv"}


def test_keep_launcher_changes_cluster_mode(translate_new: TranslateNew) -> None:
    env = {
        "SPARK_HOME": "/opt/spark",
        "SPARK_OPTS": "--master yarn --deploy-mode cluster ${KERNEL_EXTRA_SPARK_OPTS}",
    }
    stanza = {"provisioner_name": "yarn-provisioner"}
    document = describe(["/k/bin/run.sh", *HANDSHAKE], env=env, metadata={"kernel_provisioner": stanza})
    found = translate_new(document, keep_launcher=True)
    assert found.kernel_json is not None
    words = found.kernel_json["env"]["SPARK_OPTS"].split()
    assert words[:4] == ["--master", "yarn", "--deploy-mode", "client"]
    assert words[-1] == "${KERNEL_EXTRA_SPARK_OPTS}"


def test_keep_launcher_where_the_launcher_would_make_the_pod(translate_new: TranslateNew) -> None:
    stanza = {"provisioner_name": "kubernetes-provisioner", "config": {"image_name": "img:1"}}
    document = describe(
        ["python", "/k/launch_kubernetes.py", *HANDSHAKE], metadata={"kernel_provisioner": stanza}
    )
    found = translate_new(document, keep_launcher=True)
    assert get_argv(found) == ["python", *IPYKERNEL]
    assert "decision" in {line.outcome for line in found.lines if line.option == "argv"}
