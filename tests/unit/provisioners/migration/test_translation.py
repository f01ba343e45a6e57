"""What becomes of old kernelspecs: one table, which `cases` has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.jupyter.migration_cases import CASES, INPUTS, REFUSED, Case, jeg
from roost.provisioners.kernel_json import read_document
from roost.provisioners.kernelspecs import check_config
from roost.provisioners.migration import Translation, is_theirs, read_server, translate
from roost.provisioners.migration.old_kernelspec import list_places
from roost.provisioners.migration.site_files import _read_shipped
from roost.scheduler.errors import ConfigError

SECRET = "hunter2"


def write(folder: Path, document: Any, files: Any = ()) -> Path:
    """Write an old kernelspec, and return its folder."""
    folder.mkdir()
    (folder / "kernel.json").write_text(document if isinstance(document, str) else json.dumps(document))
    for name, text in dict(files).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def translate_case(tmp_path: Path, case: Case) -> Translation:
    (tmp_path / "server.py").write_text(case.server)
    server = read_server(tmp_path / "server.py")
    folder = write(tmp_path / "old", case.document, case.files)
    return translate(folder, name="old", server=server, keep_launcher=case.keep_launcher)


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_a_kernelspec(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert is_theirs(case.document)
    found = translate_case(tmp_path, case)
    assert (found.backend, found.refusal) == (case.backend, "")
    document: Any = found.kernel_json
    config = document["metadata"]["kernel_provisioner"]["config"]
    assert list(document["argv"][: len(case.argv or ())]) == list(case.argv or ())
    for key, value in case.config.items():
        assert config.get(key) == value or (
            isinstance(value, dict) and value.items() <= config[key].items()
        ), key
    for key, text in case.env.items():
        assert document.get("env", {}).get(key) == text, key
    if case.settings is not None:
        assert found.settings == case.settings
    decisions = {line.option: line.text for line in found.lines if line.kind == "please decide"}
    assert decisions.keys() == case.decide.keys()
    for option, text in case.decide.items():
        assert text in decisions[option]
    kinds = {line.option: line.kind for line in found.lines}
    assert case.says.items() <= kinds.items()
    assert [each for line in found.lines for each in line.details] == list(case.details)
    assert SECRET not in str(found.lines)
    # No place is lost, and a second run says the same.
    lost = [
        place
        for place in list_places(case.document)
        if not any(f"{each} ".startswith(f"{place} ") for each in kinds)
    ]
    assert lost == []
    assert (
        translate(
            tmp_path / "old", server=read_server(tmp_path / "server.py"), keep_launcher=case.keep_launcher
        )
        == found
    )
    # roost can start it.
    (tmp_path / "kernel.json").write_text(json.dumps(document))
    assert read_document(tmp_path)[1] == ""
    check_config(config, document.get("env", {}))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    document, clause = REFUSED[name]
    found = translate(write(tmp_path / "old", document))
    assert found.kernel_json is None
    assert clause in found.refusal


@pytest.mark.parametrize(
    ("document", "clause"),
    [
        (jeg() | {"argv": "python"}, "argv is empty or not a list of texts"),
        (jeg() | {"env": {"A": 1}}, "env is not an object of names and texts"),
        (jeg() | {"metadata": {"process_proxy": "x"}}, "metadata.process_proxy is not an object"),
        (jeg() | {"process_proxy": {"config": 1}}, "process_proxy.config is not an object"),
        (
            {"argv": ["x"], "metadata": {"kernel_provisioner": {"provisioner_name": "roost"}}},
            "is roost's already",
        ),
        ("[1]", "the document is not an object"),
        ("", "is not JSON"),
        ('{"argv": ["a"], "env": {"A": "1", "A": "2"}}', "'A' is there twice"),
        ((INPUTS / "08_trailing_comma" / "kernel.json").read_text(), r"is not JSON: .* line \d+ column \d+"),
    ],
)
def test_files_that_are_no_kernelspec(tmp_path: Path, document: Any, clause: str) -> None:
    with pytest.raises(ConfigError, match=clause):
        translate(write(tmp_path / "old", document))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (jeg(), True),
        ({"metadata": {"kernel_provisioner": {"provisioner_name": "yarn-provisioner"}}}, True),
        ({"argv": ["x", "--response-address", "{response_address}"]}, True),
        ({"process_proxy": {}}, True),
        ({"argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}, False),
        ({"metadata": {"kernel_provisioner": {"provisioner_name": "roost"}, "process_proxy": {}}}, False),
        ({"argv": [1, None]}, False),
        ({"metadata": 1}, False),
        (None, False),
    ],
)
def test_is_theirs(document: Any, expected: bool) -> None:
    assert is_theirs(document) == expected


def test_the_digests_of_shipped_files_are_well_formed() -> None:
    shipped = _read_shipped()
    assert {"run.sh", "kernel-pod.yaml.j2", "launch_ipykernel.py"} <= shipped.keys()
    for whole, lines in shipped.values():
        assert {len(each) for each in whole | lines} == {6}
