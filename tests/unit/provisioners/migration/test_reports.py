"""Each report has a line for each key, and no secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.provisioners.migration import Translation, is_theirs, translate
from roost.provisioners.migration.kernel_file import list_places
from roost.scheduler.errors import ConfigError

TranslateNew = Callable[..., Translation]
MakeSpec = Callable[..., Path]
INPUTS = Path(__file__).parent / "inputs"
GOOD = [folder.name for folder in sorted(INPUTS.iterdir()) if folder.name != "08_trailing_comma"]
HANDSHAKE = ["--kernel-id", "{kernel_id}", "--response-address", "{response_address}"]
SECRET = "hunter2"


def describe(provisioner: str = "yarn-provisioner", **others: Any) -> dict[str, Any]:
    document = {
        "argv": ["python", "/k/launch_ipykernel.py", *HANDSHAKE],
        "display_name": "Old",
        "language": "python",
        "metadata": {"kernel_provisioner": {"provisioner_name": provisioner, "config": {}}},
    }
    return document | others


def find_lost(document: dict[str, Any], translation: Translation) -> list[str]:
    """Return the places of a kernel.json without a line."""
    named = [line.option for line in translation.lines]
    return [
        place
        for place in list_places(document)
        if place not in named and not any(option.startswith(f"{place} ") for option in named)
    ]


@pytest.mark.parametrize("name", GOOD)
def test_each_key_has_a_line(name: str) -> None:
    document = json.loads((INPUTS / name / "kernel.json").read_text())
    found = translate(INPUTS / name)
    assert find_lost(document, found) == []
    assert all(line.text and line.text.isprintable() for line in found.lines)
    assert not [line for line in found.lines if line.text.startswith("roost does not know")]


def test_unknown_keys_have_a_line_too(translate_new: TranslateNew) -> None:
    metadata = {
        "kernel_provisioner": {"provisioner_name": "yarn-provisioner", "config": {"colour": 1}, "extra": 2},
        "process_proxy": {"class_name": "a.B", "config": {"image_name": "x"}},
        "own": {"a": 1},
    }
    document = describe(metadata=metadata, colour="red", process_proxy={"class_name": "x.Y"})
    found = translate_new(document)
    assert find_lost(document, found) == []
    outcomes = {line.option: line.outcome for line in found.lines}
    assert outcomes["metadata.kernel_provisioner.config.colour"] == "none"
    assert outcomes["metadata.kernel_provisioner.extra"] == "none"
    assert outcomes["metadata.process_proxy.config.image_name"] == "dropped"
    assert found.kernel_json is not None
    assert (found.kernel_json["colour"], found.kernel_json["metadata"]["own"]) == ("red", {"a": 1})


def test_lines_keep_the_order_of_the_file(translate_new: TranslateNew) -> None:
    names = [f"option_{number}" for number in range(9)]
    metadata = {
        "kernel_provisioner": {"provisioner_name": "yarn-provisioner", "config": dict.fromkeys(names, 1)}
    }
    found = translate_new(describe(metadata=metadata))
    shown = [line.option.rpartition(".")[2] for line in found.lines if ".config." in line.option]
    assert shown == names
    assert not is_theirs(found.kernel_json)


def test_each_argument_has_a_line(translate_new: TranslateNew) -> None:
    document = describe(env={"LAUNCH_OPTS": "--cluster-type none --new 1 word", "SPARK_OPTS": "--odd x y"})
    options = [line.option for line in translate_new(document).lines]
    for option in (
        "LAUNCH_OPTS --cluster-type",
        "LAUNCH_OPTS --new",
        "LAUNCH_OPTS",
        "SPARK_OPTS --odd",
        "SPARK_OPTS ",
    ):
        assert f"env {option}".strip() in options


@pytest.mark.parametrize(
    "env",
    [
        {"DB_PASSWORD": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "GIT_TOKEN": SECRET, "API_KEY": SECRET},
        {"CATALOG": f"https://ada:{SECRET}@catalog.example/"},
        {"SPARK_OPTS": f"--conf spark.hadoop.fs.s3a.secret.key={SECRET} --conf spark.ssl.keyPassword={SECRET}"},
        {"SPARK_OPTS": f"--master yarn --files https://ada:{SECRET}@files.example/a https://{SECRET}@b.example/"},
        {"LAUNCH_OPTS": f"--password {SECRET} --url=https://ada:{SECRET}@x.example"},
        {"EG_AUTH_TOKEN": SECRET, "EG_REMOTE_PWD": SECRET, "EG_REMOTE_HOSTS": f"https://a:{SECRET}@h"},
        {"KERNEL_IMAGE": f"https://ada:{SECRET}@registry.example/a:1", "KERNEL_CPUS": f"token={SECRET}"},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "provisioner", ["yarn-provisioner", "kubernetes-provisioner", "distributed-provisioner"]
)
def test_no_secret_is_shown(translate_new: TranslateNew, provisioner: str, env: dict[str, str]) -> None:
    found = translate_new(describe(provisioner, env=env))
    assert SECRET not in str(found.lines) + found.refusal


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"argv": "python"}, "line 1 column 2: argv is missing, empty or not a list of texts"),
        ({"argv": []}, "argv is missing"),
        ({"env": {"A": 1}}, "env is not an object of names and texts"),
        ({"language": 1}, "language is not a text"),
        ({"metadata": []}, "metadata is not an object"),
        ({"metadata": {"process_proxy": "x"}}, "metadata.process_proxy is not an object"),
        ({"process_proxy": {"class_name": 1}}, "process_proxy.class_name is not a text"),
        ({"metadata": {"kernel_provisioner": {"config": 1}}}, "metadata.kernel_provisioner.config is not an object"),
    ],
)  # fmt: skip
def test_wrong_types(translate_new: TranslateNew, change: dict[str, Any], clause: str) -> None:
    with pytest.raises(ConfigError) as found:
        translate_new(describe() | change if "metadata" not in change else {**describe(), **change})
    assert clause in found.value.user_message
    assert found.value.user_message.count("\n") == 0


@pytest.mark.parametrize("text", ["", "[1]", "nul", '{"argv": [1,]}'])
def test_files_that_are_no_kernelspec(translate_new: TranslateNew, text: str) -> None:
    with pytest.raises(ConfigError, match=r"kernel\.json"):
        translate_new(text)


def test_a_key_that_is_there_twice(translate_new: TranslateNew) -> None:
    text = '{"argv": ["a"],\n "env": {"A": "1", "A": "2"}}'
    with pytest.raises(ConfigError, match="line 2 column 10: a key is there twice"):
        translate_new(text)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        translate(tmp_path)


def test_a_kernelspec_of_roosts(translate_new: TranslateNew) -> None:
    with pytest.raises(ConfigError, match="is roost's already"):
        translate_new(describe("roost"))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (describe(), True),
        (describe("local-provisioner", argv=["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]), False),
        (describe("local-provisioner"), True),  # its launcher
        (describe("roost"), False),
        ({"process_proxy": {}}, True),
        ({"metadata": {"process_proxy": None}}, True),
        ({"argv": [1, None]}, False),
        ({"metadata": 1}, False),
        ([], False),
        (None, False),
    ],
)  # fmt: skip
def test_is_theirs(document: Any, expected: bool) -> None:
    assert is_theirs(document) == expected
