"""`roost migrate` from folder to folder: places, second runs, `--undo`, settings, and the report."""

from __future__ import annotations

import errno
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kit.jupyter.migration_cases import INPUTS
from kit.jupyter.old_kernelspecs import JupyterFolders, separate_jupyter, write_old
from roost.provisioners.kernel_json import read_document
from roost.provisioners.migration.folders import write_settings
from roost.scheduler.cli import main
from roost.scheduler.errors import ConfigError

SERVER = "c.EnterpriseGatewayApp.authorized_users = {'ada', 'bob', 'eve'}\n"
SETTINGS = {"RoostScheduler": {"allowed_users": ["ada", "bob", "eve"]}}
KINDS = ["please decide", "taken over", "not needed"]
SCREEN = (40, 100)
"""Lines and columns of a screen."""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JupyterFolders:
    monkeypatch.setenv("COLUMNS", str(SCREEN[1]))
    return separate_jupyter(tmp_path, monkeypatch)


def migrate(*arguments: str) -> int:
    return main.main(["migrate", *arguments])


def list_files(folders: JupyterFolders) -> dict[str, bytes]:
    return {name: content for name, content in folders.list_files().items() if content is not None}


def read_new(folder: Path) -> Any:
    document, problem = read_document(folder)
    assert problem == ""
    return document


def test_a_new_kernelspec_stands_before_the_old_one(folders: JupyterFolders) -> None:
    old = write_old(folders.system, "Spark")
    before = list_files(folders)
    assert migrate("spark", "--check") == migrate("spark", "--diff") == 0
    assert list_files(folders) == before
    assert migrate("spark") == 0
    new = folders.user / "kernels" / "Spark"
    assert read_new(new)["metadata"]["kernel_provisioner"]["config"] == {"backend": "local"}
    assert (new / "logo-64x64.png").read_bytes() == b"png"
    assert json.loads((old / "kernel.json").read_text())["metadata"]["process_proxy"]
    assert migrate("--undo") == 0
    assert list_files(folders) == before


def test_a_new_kernelspec_takes_the_old_ones_place(folders: JupyterFolders) -> None:
    place = write_old(folders.user, "spark")
    before = list_files(folders)
    assert migrate("--all") == 0
    written = list_files(folders)
    assert (folders.user / "spark.before-roost" / "kernel.json").exists()
    assert "process_proxy" not in read_new(place)["metadata"]
    assert migrate("--all") == migrate("spark") == migrate(str(place)) == 0
    assert list_files(folders) == written
    assert migrate("--undo", "spark") == 0
    assert list_files(folders) == before


def test_a_run_that_was_killed_is_finished_or_undone(folders: JupyterFolders) -> None:
    place, aside = write_old(folders.user, "spark"), folders.user / "spark.before-roost"
    for finish in ("--all", "--undo"):
        place.rename(aside)
        assert migrate(finish) == 0
        assert place.is_dir()
        if finish == "--all":
            assert read_new(place)["metadata"]["roost_migration"]["source"] == str(aside)
            migrate("--undo")
    assert not aside.exists()


def test_a_new_kernelspec_stays_if_the_old_one_is_gone(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    place, aside = write_old(folders.user, "spark"), folders.user / "spark.before-roost"
    assert migrate("spark") == 0
    shutil.rmtree(aside)
    assert migrate("--undo") == 1
    assert f"{aside} is gone, so nothing can be put back" in capsys.readouterr().err
    assert read_new(place)


def test_settings_that_cannot_be_written_leave_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(file: Path, mode: str) -> Full:
        file.touch(exist_ok=False)
        return Full()

    monkeypatch.setattr(Path, "open", open_full)
    file = tmp_path / "jupyter" / "jupyter_roost_config.json"
    with pytest.raises(ConfigError, match=r"jupyter_roost_config.json cannot be written: No space left"):
        write_settings(file, {"RoostScheduler": {"allowed_users": ["ada"]}})
    assert list(file.parent.iterdir()) == []


def test_what_a_person_has_changed_stays(folders: JupyterFolders, capsys: pytest.CaptureFixture[str]) -> None:
    place = write_old(folders.user, "spark", env={"SESSION_TOKEN": "hunter2"})
    assert migrate("spark") == migrate("spark") == 3
    document = read_new(place) | {"display_name": "Ours"}
    (place / "kernel.json").write_text(json.dumps(document))
    assert migrate("spark") == 0
    assert "it is yours now" in capsys.readouterr().out
    assert migrate("--undo") == 1
    assert "has changed since the migration" in capsys.readouterr().err
    assert read_new(place) == document


def test_the_folder_can_be_named(folders: JupyterFolders, tmp_path: Path) -> None:
    elsewhere = write_old(tmp_path / "gateway" / "share" / "jupyter", "spark").parents[1]
    assert migrate("--all", "--from", str(elsewhere), "--prefix", str(tmp_path / "prefix")) == 0
    new = tmp_path / "prefix" / "share" / "jupyter" / "kernels" / "spark"
    assert read_new(new)["metadata"]["kernel_provisioner"]["provisioner_name"] == "roost"
    assert migrate("--all", "--from", str(tmp_path / "nothing")) == 2
    assert migrate("--undo", "--prefix", str(tmp_path / "prefix")) == 0
    assert not new.exists()


def test_another_kernelspec_is_never_overwritten(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, "spark")
    other = folders.environment / "kernels" / "Spark"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text('{"argv": ["x", "{connection_file}"]}')
    before = list_files(folders)
    assert migrate(str(folders.system / "kernels" / "spark"), "--user") == 0  # Jupyter searches it first
    assert migrate("--undo") == 0
    assert migrate("none") == 1
    assert migrate(str(other)) == 1
    assert "no kernelspec of the three systems" in capsys.readouterr().out
    assert list_files(folders) == before


def test_settings_are_written_once_and_removed(
    folders: JupyterFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run finds them there, in whatever order Python has a set."""
    old = write_old(folders.system, "spark")
    server = tmp_path / "config.py"
    server.write_text(SERVER)
    before = list_files(folders)
    file = folders.config / "jupyter_roost_config.json"
    assert migrate("spark", "--server", str(server)) == 0
    assert json.loads(file.read_text()) == SETTINGS
    mark = read_new(folders.user / "kernels" / "spark")["metadata"]["roost_migration"]
    assert list(mark["settings"]) == [str(file)]
    assert "ada" not in json.dumps(mark)
    server.write_text(SERVER.replace("'ada', 'bob', 'eve'", "'eve', 'bob', 'ada'"))
    for _ in range(2):
        assert migrate("--all", "--server", str(server)) == 0
    assert "error" not in capsys.readouterr().out
    write_old(folders.system, "other")
    assert migrate("other") == 0
    assert migrate("--undo", "other") == 0
    assert file.exists()
    assert migrate("--undo") == 0
    old.with_name("other").joinpath("kernel.json").unlink()
    assert not file.exists()
    assert list_files(folders).items() >= before.items()


def test_settings_of_a_person_stay(
    folders: JupyterFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, "spark")
    (tmp_path / "config.py").write_text(SERVER)
    folders.config.mkdir(parents=True)
    own = folders.config / "jupyter_roost_config.py"
    own.write_text("")
    assert migrate("spark", "--server", str(tmp_path / "config.py")) == 3
    shown = capsys.readouterr().out
    assert "Add them to" in shown
    assert "c.RoostScheduler.allowed_users = ['ada', 'bob', 'eve']" in shown
    own.write_text("c.RoostScheduler.allowed_users = ['ada', 'bob', 'eve']")
    assert migrate("spark", "--server", str(tmp_path / "config.py")) == 0


def test_settings_of_a_server_without_kernelspecs_are_shown(
    folders: JupyterFolders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.py").write_text(SERVER)
    assert migrate("--all", "--json", "--server", str(tmp_path / "config.py")) == 3
    settings = json.loads(capsys.readouterr().out)["settings"]
    file = folders.config / "jupyter_roost_config.json"
    assert (settings["state"], settings["theirs"]) == ("by hand", [str(file)])
    assert settings["values"] == SETTINGS
    assert not file.exists()


def test_files_of_one_name_are_all_compared(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write_old(folders.system, "spark")
    for name in ("bin", "scripts"):
        (place / name).mkdir(exist_ok=True)
        (place / name / "run.sh").write_text(f"source /etc/lab/{name}.sh\n")
    assert migrate("spark", "--check") == 3
    shown = capsys.readouterr().out
    assert "source /etc/lab/bin.sh" in shown
    assert "source /etc/lab/scripts.sh" in shown


def test_errors_and_refusals_stop_no_other(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, "good")
    assert migrate("--all") == 0
    write_old(folders.system, "refused", "conductor.ConductorClusterProcessProxy")
    assert migrate("--all") == 3
    (write_old(folders.system, "bad") / "kernel.json").write_text("{,}")
    capsys.readouterr()
    assert migrate("--all", "--json") == 1
    states = {each["name"]: each["state"] for each in json.loads(capsys.readouterr().out)["kernelspecs"]}
    assert states == {"good": "there", "refused": "refused", "bad": "error"}
    migrate("--all")
    assert "3 kernelspecs: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "01_stanza_at_top",
        "03_docker_run_in_argv",
        "05_packed_environment",
        "09_gp_hosts_and_users",
        "10_k8s_resources_in_env",
    ],
)
def test_the_report_fits_one_screen(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    migrate(str(INPUTS / name), "--check")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= SCREEN[0]
    kinds = [line[:16].strip() for line in lines if line[:16].strip() in KINDS]
    assert kinds == KINDS


def test_a_difference_has_no_secrets(folders: JupyterFolders, capsys: pytest.CaptureFixture[str]) -> None:
    env = {"API_TOKEN": "hunter2", "SPARK_OPTS": "--conf a.password=hunter2"}
    write_old(folders.system, "spark", env=env, argv=["x", "--response-address", "--token", "hunter2"])
    migrate("spark", "--diff")
    migrate("spark")
    shown = capsys.readouterr().out
    assert '"API_TOKEN": "(a secret, not shown)"' in shown
    assert "hunter2" not in shown
