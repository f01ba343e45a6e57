"""The settings that migrated kernelspecs need are written, joined, taken back, and never put into a person's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.jupyter.old_kernelspecs import JupyterFolders, separate_jupyter, write_old
from roost.provisioners.migration.report import Translation
from roost.scheduler.cli import main

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JupyterFolders:
    """Return empty folders. A kernelspec `a` needs the settings in its env, as JSON."""

    def translate(folder: Path, **_: object) -> Translation:
        document = json.loads((folder / "kernel.json").read_text())
        config = json.loads(document.pop("env")["CONFIG"])
        document["metadata"] = {
            "kernel_provisioner": {"provisioner_name": "roost", "config": {"backend": "local"}}
        }
        return Translation(name=folder.name, backend="local", kernel_json=document, config=config)

    monkeypatch.setattr("roost.scheduler.cli.migrate.translate", translate)
    monkeypatch.delenv("COLUMNS", raising=False)  # else long paths are broken
    return separate_jupyter(tmp_path, monkeypatch)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command and returns its JSON document."""

    def run(*arguments: str, code: int = 0) -> dict[str, Any]:
        assert main.main(["migrate", "--json", *arguments]) == code, capsys.readouterr()
        return dict(json.loads(capsys.readouterr().out))

    return run


def write_needing(folders: JupyterFolders, name: str, **scheduler: Any) -> None:
    write_old(folders.system, name, env={"CONFIG": json.dumps({"RoostScheduler": scheduler})})


def read_settings(folder: Path) -> Any:
    return json.loads((folder / "jupyter_roost_config.json").read_text())["RoostScheduler"]


def test_the_settings_of_all_kernelspecs_are_joined_and_taken_back(folders: JupyterFolders, run: Run) -> None:
    write_needing(folders, "b", denied_users=["ada", "bob"], max_kernels_per_user=3)
    write_needing(folders, "a", denied_users=["bob", "eve"])
    before = folders.list_files()
    assert run("b")["settings"][0]["state"] == "new"
    assert read_settings(folders.config) == {"denied_users": ["ada", "bob"], "max_kernels_per_user": 3}
    run("a")
    joined = {"denied_users": ["bob", "eve", "ada"], "max_kernels_per_user": 3}
    assert read_settings(folders.config) == joined
    written = folders.list_files()
    assert run("--all")["settings"][0]["state"] == "there"
    assert folders.list_files() == written
    run("--undo", "b")
    assert read_settings(folders.config) == {"denied_users": ["bob", "eve"]}
    run("--undo")
    assert folders.list_files() == before


def test_settings_go_beside_the_kernelspecs(folders: JupyterFolders, run: Run) -> None:
    write_needing(folders, "a", denied_users=["ada"])
    prefix = folders.environment.parent.parent
    run("a", "--prefix", str(prefix))
    assert read_settings(prefix / "etc" / "jupyter") == {"denied_users": ["ada"]}
    assert not folders.config.exists()


def test_settings_go_where_a_service_reads_them(
    folders: JupyterFolders, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jupyter finds kernelspecs below JUPYTER_PATH, but no configuration beside it."""
    data = tmp_path / "old" / "share" / "jupyter"
    write_old(data, "a", env={"CONFIG": json.dumps({"RoostScheduler": {"denied_users": ["ada"]}})})
    monkeypatch.setenv("JUPYTER_PATH", str(data))
    run("a")
    assert read_settings(folders.config) == {"denied_users": ["ada"]}
    assert not (tmp_path / "old" / "etc").exists()
    run("--undo")
    assert not (folders.config / "jupyter_roost_config.json").exists()


@pytest.mark.parametrize(
    ("name", "text", "with_it"),
    [
        (
            "jupyter_roost_config.py",
            "c.RoostScheduler.max_kernels_per_user = 4\n",
            "c.RoostScheduler.denied_users = ['ada']\n",
        ),
        (
            "jupyter_roost_config.json",
            '{"RoostScheduler": {}}',
            '{"RoostScheduler": {"denied_users": ["x", "ada"]}}',
        ),
    ],
)
def test_a_persons_file_stays(
    folders: JupyterFolders, run: Run, capsys: pytest.CaptureFixture[str], name: str, text: str, with_it: str
) -> None:
    write_needing(folders, "a", denied_users=["ada"])
    folders.config.mkdir(parents=True)
    file = folders.config / name
    file.write_text(text)
    before = folders.list_files()
    assert main.main(["migrate", "a"]) == 3
    shown = capsys.readouterr().out
    assert "c.RoostScheduler.denied_users = ['ada']" in shown
    assert str(file) in shown
    assert file.read_text() == text
    file.write_text(with_it)
    assert run("a")["settings"][0]["state"] == "there"
    file.write_text(text)
    run("--undo")
    assert folders.list_files() == before


def test_a_file_that_was_edited_stays(folders: JupyterFolders, run: Run) -> None:
    write_needing(folders, "a", denied_users=["ada"])
    run("a")
    file = folders.config / "jupyter_roost_config.json"
    file.write_text('{"RoostScheduler": {"denied_users": ["ada", "mallory"]}}')
    assert run("a")["settings"][0]["state"] == "there"
    assert run("--undo")["settings"] == [str(file)]
    assert "mallory" in file.read_text()


def test_a_file_that_cannot_be_written_is_one_sentence(folders: JupyterFolders, run: Run) -> None:
    write_needing(folders, "a", denied_users=["ada"])
    folders.config.parent.mkdir()
    folders.config.write_text("no folder")
    (settings,) = run("a", code=1)["settings"]
    assert settings["problem"].startswith(
        f"{folders.config / 'jupyter_roost_config.json'} cannot be written: "
    )
    assert (folders.user / "kernels" / "a" / "kernel.json").exists()
