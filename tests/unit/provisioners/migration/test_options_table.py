"""Each option of the table has a rule where it can stand in a kernelspec or in a server's settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kit.machine.cases import find_wrong
from roost.provisioners.migration import Translation, translate_server
from roost.provisioners.migration.classes import PROVISIONERS, find_class
from roost.provisioners.migration.options_table import STATUSES, read_table

TranslateNew = Callable[..., Translation]
UNKNOWN = "roost does not know"


def list_names(kind: str) -> list[str]:
    return sorted({row["name"] for row in read_table() if row["kind"] == kind and " " not in row["name"]})


def test_the_table_is_well_formed() -> None:
    for row in read_table():
        assert all(row[key] for key in ("system", "kind", "name", "meaning", "roost"))
        assert row["status"] in STATUSES
        assert None not in row


def test_each_class_has_a_kind() -> None:
    names = [name for name in list_names("class") if "*" not in name]
    assert "yarn-provisioner" in names
    unknown = [name for name in names if name not in PROVISIONERS and find_class(name) is None]
    assert unknown == ["crd.CustomResourceProvisioner"]  # abstract: no kernelspec has it


def test_each_variable_of_a_server_has_a_line() -> None:
    def check(name: str) -> None:
        (line,) = translate_server({name: "1"}).lines
        assert line.option == f"server {name}"
        assert not line.text.startswith(UNKNOWN)

    assert find_wrong([name for name in list_names("env-server") if "*" not in name], check) == []


def test_each_trait_of_a_server_has_a_line() -> None:
    def check(name: str) -> None:
        (line,) = translate_server({name: 1}).lines
        assert not line.text.startswith(UNKNOWN)

    assert find_wrong([name for name in list_names("trait") if "*" not in name], check) == []


@pytest.mark.parametrize(
    "provisioner", ["kubernetes-provisioner", "yarn-provisioner", "distributed-provisioner"]
)
def test_each_option_and_variable_of_a_kernelspec_has_a_line(
    translate_new: TranslateNew, provisioner: str
) -> None:
    config = {
        name.removeprefix("config."): "1" for name in list_names("kernelspec") if name.startswith("config.")
    }
    variables = [
        *list_names("env-kernel"),
        *(n.removeprefix("env.") for n in list_names("kernelspec") if "env." in n),
    ]
    env = {name: "1" for name in variables if "DASK" not in name}
    document = {
        "argv": ["/k/run.sh", "--kernel-id", "{kernel_id}", "--response-address", "{response_address}"],
        "display_name": "All",
        "language": "python",
        "env": env,
        "metadata": {"kernel_provisioner": {"provisioner_name": provisioner, "config": config}},
    }
    document["argv"] += [
        word for name in list_names("launcher") if name.startswith("--") for word in (name, "x")
    ]
    found = translate_new(document)
    assert found.kernel_json is not None, found.refusal
    options = {line.option for line in found.lines}
    place = "metadata.kernel_provisioner.config."
    assert {place + name for name in config} <= options
    assert {f"env {name}" for name in env} <= {
        option.partition(" --")[0].partition(" 1")[0] for option in options
    }
    assert not [line for line in found.lines if line.text.startswith(UNKNOWN)]
    server_names = ("EG_", "GP_", "RP_", "__TOREE")
    assert not [name for name in found.kernel_json["env"] if name.startswith(server_names)]
