"""Kernelspecs are migrated: found, written beside the old ones, left alone when they are there, and undone."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kit.jupyter.kernelspecs import read_kernelspec
from kit.jupyter.old_kernelspecs import JupyterFolders, separate_jupyter, write_old
from roost.provisioners import kernelspecs
from roost.provisioners.migration.files.undo import find_migrated, undo
from roost.scheduler.cli import commands, main

NAME = "spark_Python_YARN"


PARSER = commands.build_parser()
"""The parser takes as long as the rest of a run."""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JupyterFolders:
    monkeypatch.setattr(commands, "build_parser", lambda: PARSER)
    return separate_jupyter(tmp_path, monkeypatch)


def migrate(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run the command and return its JSON document."""
    assert main.main(["migrate", "--json", *arguments]) == code, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def migrate_one(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    (found,) = migrate(capsys, *arguments, code=code)["kernelspecs"]
    return dict(found)


def test_the_new_kernelspec_has_the_name_and_all_files(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_old(folders.system, NAME)
    before = read_kernelspec(old)
    found = migrate_one(capsys, NAME.lower())
    new = folders.user / "kernels" / NAME
    assert (found["state"], found["folder"], found["from"]) == ("written", str(new), str(old))
    assert KernelSpecManager().get_kernel_spec(NAME).resource_dir == str(new)
    document = read_kernelspec(new)
    assert document["metadata"]["kernel_provisioner"]["provisioner_name"] == "roost"
    assert document["display_name"] == NAME
    assert sorted(path.name for path in new.rglob("*") if path.is_file()) == [
        "kernel.js", "kernel.json", "launch_ipykernel.py", "logo-64x64.png"
    ]  # fmt: skip
    assert read_kernelspec(old) == before
    assert [spec.name for spec in kernelspecs.list_kernelspecs()] == [NAME.lower()]


def test_a_second_run_changes_nothing(folders: JupyterFolders, capsys: pytest.CaptureFixture[str]) -> None:
    write_old(folders.system, NAME)
    migrate(capsys, "--all")
    before = folders.list_files()
    assert migrate_one(capsys, "--all")["state"] == "there"
    assert migrate_one(capsys, NAME)["state"] == "there"
    assert folders.list_files() == before


@pytest.mark.parametrize("option", ["--check", "--diff"])
def test_check_and_diff_write_nothing(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    write_old(folders.system, NAME, env={"SESSION_TOKEN": "hunter2", "HOME_URL": "http://ada:hunter2@h/"})
    before = folders.list_files()
    found = migrate_one(capsys, "--all", option)
    assert found["state"] == "to write"
    assert folders.list_files() == before
    assert main.main(["migrate", "--all", option]) == 0
    shown = capsys.readouterr().out
    assert "hunter2" not in shown + json.dumps(found)
    if option == "--diff":
        assert '+  "kernel_provisioner": {' in found["diff"]
        assert "SESSION_TOKEN" in shown


def test_undo_removes_what_was_written_and_nothing_else(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, NAME)
    write_old(folders.environment, "other")
    before = folders.list_files()
    migrate(capsys, "--all")
    assert folders.list_files() != before
    removed = migrate(capsys, "--undo", NAME)["removed"]
    assert removed == [str(folders.user / "kernels" / NAME)]
    assert (folders.user / "kernels" / "other").is_dir()
    migrate(capsys, "--undo")
    assert folders.list_files() == before
    assert migrate(capsys, "--undo") == {"removed": [], "settings": [], "problems": []}
    assert "no-such" in migrate(capsys, "--undo", "no-such", code=1)["problems"][0]


def test_an_edited_kernelspec_is_a_persons(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, NAME)
    migrate(capsys, NAME)
    file = folders.user / "kernels" / NAME / "kernel.json"
    document = read_kernelspec(file.parent)
    document["display_name"] = "Spark"
    file.write_text(json.dumps(document))
    before = folders.list_files()
    assert migrate_one(capsys, NAME)["state"] == "edited"
    problems = migrate(capsys, "--undo", NAME, code=1)["problems"]
    assert "has changed since the migration, and stays" in problems[0]
    assert folders.list_files() == before


def test_a_copy_under_another_name_is_a_persons(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, NAME)
    new = Path(migrate_one(capsys, NAME)["folder"])
    shutil.copytree(new, new.with_name("copy"))
    assert main.main(["migrate", "--undo"]) == 1
    output = capsys.readouterr()
    assert f"Removed {new}" in output.out
    assert f"{new.with_name('copy')} has changed since the migration" in output.err
    assert [path.name for path in new.parent.iterdir()] == ["copy"]


def test_a_file_that_a_person_has_added_is_an_edit(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, NAME)
    migrate(capsys, NAME)
    (folders.user / "kernels" / NAME / "notes.txt").write_text("mine")
    migrate(capsys, "--undo", code=1)
    assert (folders.user / "kernels" / NAME / "notes.txt").read_text() == "mine"


def test_a_kernelspec_that_stands_there_is_not_overwritten(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, NAME)
    mine = json.dumps({"argv": ["R", "{connection_file}"], "display_name": "mine", "language": "R"})
    for name, said in ((NAME, "another kernelspec in"), (NAME.lower(), "finds the kernelspec in")):
        folder = folders.user / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(mine)
        before = folders.list_files()
        assert said in migrate_one(capsys, NAME, code=1)["problem"]
        assert folders.list_files() == before
        shutil.rmtree(folder)


def test_two_undos_at_once_are_one(folders: JupyterFolders, capsys: pytest.CaptureFixture[str]) -> None:
    write_old(folders.system, NAME)
    migrate(capsys, NAME)
    (first,), (second,) = find_migrated(), find_migrated()
    undo(first)
    undo(second)
    assert list((folders.user / "kernels").iterdir()) == []


def test_other_input_needs_an_undo_first(folders: JupyterFolders, capsys: pytest.CaptureFixture[str]) -> None:
    old = write_old(folders.system, NAME)
    migrate(capsys, NAME)
    (old / "logo-64x64.png").write_bytes(b"another")
    found = migrate_one(capsys, NAME, code=1)
    assert f"run `roost migrate --undo {NAME}` first" in found["problem"]


def test_the_old_one_is_put_aside_if_jupyter_searches_its_folder_first(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folders.user.parent / "first"
    monkeypatch.setenv("JUPYTER_PATH", str(first))
    old = write_old(first, NAME)
    before = folders.list_files()
    found = migrate_one(capsys, NAME)
    aside = first / "kernels-before-roost" / NAME
    assert found["folder"] == str(old)
    assert str(aside) in found["note"]
    assert read_kernelspec(aside)["metadata"]["process_proxy"]
    assert (
        KernelSpecManager().get_kernel_spec(NAME).metadata["kernel_provisioner"]["provisioner_name"]
        == "roost"
    )
    written = folders.list_files()
    assert migrate_one(capsys, "--all")["state"] == "there"
    assert folders.list_files() == written
    migrate(capsys, "--undo")
    assert folders.list_files() == before


def test_a_run_that_was_killed_is_finished_by_the_next_or_undone(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only moment without a kernelspec is between two renames: the old one is aside, the new one not yet there."""
    old = write_old(folders.user, NAME)
    before = folders.list_files()
    aside = folders.user / "kernels-before-roost"
    aside.mkdir()
    old.rename(aside / NAME)
    migrate(capsys, "--undo")
    assert folders.list_files() == before
    aside.mkdir()
    old.rename(aside / NAME)
    found = migrate_one(capsys, "--all")
    assert (found["state"], found["folder"]) == ("written", str(folders.user / "kernels" / NAME))
    migrate(capsys, "--undo")
    assert folders.list_files() == before


@pytest.mark.parametrize("is_aside", [False, True])
@pytest.mark.parametrize("undoes", [False, True])
def test_a_run_can_be_killed_at_each_step(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], *, is_aside: bool, undoes: bool
) -> None:
    old = write_old(folders.user if is_aside else folders.system, NAME)
    whole = len(list(old.rglob("*")))
    before = folders.list_files()
    step = 0
    is_killed = True
    while is_killed:
        step += 1
        if undoes:
            migrate(capsys, NAME)
        is_killed = die_at_step(step, folders, ["--undo"] if undoes else [NAME])
        found = KernelSpecManager().find_kernel_specs().get(NAME.lower())
        assert found is not None or is_aside, step
        assert found is None or len(list(Path(found).rglob("*"))) == whole, step
        if not undoes:
            assert migrate_one(capsys, NAME)["state"] in ("written", "there")
        migrate(capsys, "--undo")
        after = folders.list_files()
        if is_killed:  # it may leave empty folders
            after = {
                name: content for name, content in after.items() if name in before or content is not None
            }
        assert after == before, step
        if not is_aside:
            shutil.rmtree(folders.user.parent, ignore_errors=True)
    assert step > 5


def die_at_step(step: int, folders: JupyterFolders, arguments: list[str]) -> bool:
    """Run the command in a child that ends before its `step`th change of a file. Return False if it has fewer."""
    pid = os.fork()
    if not pid:
        root, left = str(folders.user.parent.parent.parent), step

        def count(event: str, values: tuple[Any, ...]) -> None:
            nonlocal left
            is_change = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod") or (
                event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if is_change and any(isinstance(each, (str, Path)) and root in str(each) for each in values):
                left -= 1
                if not left:
                    os._exit(9)

        sys.addaudithook(count)
        os._exit(main.main(["migrate", *arguments]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.parametrize("at", ["kernel.js", "kernel.json", "rename"])
def test_a_failure_leaves_nothing_half_written(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    write_old(folders.system, NAME)
    (folders.user / "kernels").mkdir(parents=True)
    before = folders.list_files()

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if at == "rename":
            patch.setattr(Path, "rename", fail)
        elif at == "kernel.json":
            patch.setattr(Path, "write_text", fail)
        else:
            patch.setattr("roost.provisioners.kernel_resources.shutil.copyfileobj", fail)
        found = migrate_one(capsys, NAME, code=1)
    assert "No space left on device" in found["problem"]
    assert folders.list_files() == before


def test_another_program_that_writes_the_same_kernelspec_is_named(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_old(folders.system, NAME)
    rename = Path.rename

    def come_second(source: Path, target: Path) -> Path:
        shutil.copytree(source, target)
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", come_second)
        assert "Run the command again" in migrate_one(capsys, NAME, code=1)["problem"]
    assert migrate_one(capsys, NAME)["state"] == "there"


def test_a_bad_kernelspec_stops_no_other(folders: JupyterFolders, capsys: pytest.CaptureFixture[str]) -> None:
    write_old(folders.system, "good")
    bad = write_old(folders.system, "bad")
    (bad / "kernel.json").write_text('{"argv": ["a",],}')
    found = {each["name"]: each for each in migrate(capsys, "--all", code=1)["kernelspecs"]}
    assert (found["good"]["state"], found["bad"]["state"]) == ("written", "error")
    assert "line 1 column" in found["bad"]["problem"]
    assert not (folders.user / "kernels" / "bad").exists()


def test_plain_kernelspecs_are_left_alone(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_old(folders.system, "plain")
    (plain / "kernel.json").write_text(
        json.dumps({"argv": ["R", "{connection_file}"], "display_name": "R", "language": "R"})
    )
    assert migrate(capsys, "--all")["kernelspecs"] == []
    assert "leave it as it is" in migrate_one(capsys, "plain", code=1)["problem"]
    assert "There is no kernelspec" in migrate_one(capsys, "no-such", code=1)["problem"]
    assert "There is no kernel.json" in migrate_one(capsys, "./no-such", code=1)["problem"]


def test_a_folder_of_the_old_server_and_a_path(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = write_old(tmp_path / "server" / "share" / "jupyter", NAME)
    found = migrate_one(capsys, str(old))
    assert found["state"] == "written"
    migrate(capsys, "--undo")
    for prefix in ("server", "server/share/jupyter", "server/share/jupyter/kernels"):
        assert migrate_one(capsys, "--all", "--check", "--from", str(tmp_path / prefix))["from"] == str(old)
    assert main.main(["migrate", "--all", "--from", str(tmp_path / "no-such")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_folder_of_the_old_server_that_cannot_be_read(
    folders: JupyterFolders,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def refuse(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("roost.provisioners.migration.files.found_kernelspecs.os.listdir", refuse)
        code = main.main(["migrate", "--all", "--from", str(tmp_path)])
    assert (code, "cannot be read: Permission denied" in capsys.readouterr().err) == (2, True)


def test_a_folder_whose_name_jupyter_ignores_is_ignored(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("köln", "a copy"):
        write_old(folders.system, name)
        write_old(tmp_path / "server", name)
    assert migrate(capsys, "--all", "--from", str(tmp_path / "server"))["kernelspecs"] == []
    assert "no kernelspec" in migrate_one(capsys, "köln", code=1)["problem"]


def test_a_moved_kernelspec_whose_old_one_is_gone_is_done(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_old(folders.system, NAME)
    migrate(capsys, NAME)
    old.rename(folders.system / "gone")
    assert migrate_one(capsys, NAME)["state"] == "moved"
    assert migrate(capsys, "--all")["kernelspecs"] == []


def test_a_named_folder_that_jupyter_searches_later_is_refused(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.environment, NAME)
    later = str(folders.system.parent.parent)
    assert (
        "would still find the old kernelspec"
        in migrate_one(capsys, NAME, "--prefix", later, code=1)["problem"]
    )
    elsewhere = str(folders.system.parent.parent.parent / "elsewhere")
    before = folders.list_files()
    assert "JUPYTER_PATH" in migrate_one(capsys, NAME, "--prefix", elsewhere)["note"]
    assert migrate_one(capsys, NAME, "--prefix", elsewhere)["state"] == "there"
    migrate(capsys, "--undo", "--prefix", elsewhere)
    assert folders.list_files() == before


def test_a_prefix_that_has_the_old_one_puts_it_aside(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    old = write_old(folders.system, NAME)
    prefix = str(folders.system.parent.parent)
    assert migrate_one(capsys, NAME, "--prefix", prefix)["folder"] == str(old)
    assert migrate_one(capsys, NAME, "--prefix", prefix)["state"] == "there"
    migrate(capsys, "--undo")
    assert read_kernelspec(old)["metadata"]["process_proxy"]


def test_the_settings_of_the_old_server(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_old(folders.system, NAME)
    first, second = tmp_path / "gateway.env", tmp_path / "jupyter_enterprise_gateway_config.py"
    first.write_text("EG_MAX_KERNELS_PER_USER=5\nEG_UNAUTHORIZED_USERS=root\n")
    second.write_text("c.EnterpriseGatewayApp.max_kernels_per_user = 7\n")
    found = migrate(capsys, NAME, "--server", str(first), "--server", str(second))
    assert {line["outcome"] for line in found["server"]} == {"translated"}
    scheduler = json.loads((folders.config / "jupyter_roost_config.json").read_text())["RoostScheduler"]
    assert scheduler["denied_users"] == ["root"]
    second.write_text("c.EnterpriseGatewayApp.max_kernels_per_user = count()\n")
    migrate(capsys, "--undo")
    found = migrate(capsys, NAME, "--server", str(second), code=3)
    assert [line["outcome"] for line in found["server"]] == ["decision"]
    assert main.main(["migrate", NAME, "--server", str(tmp_path / "no-such")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_users_folder_is_skipped_if_jupyter_searches_it_later(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    write_old(folders.user, NAME)
    assert migrate_one(capsys, NAME)["folder"] == str(folders.environment / "kernels" / NAME)


def test_a_folder_that_cannot_be_written_is_skipped(
    folders: JupyterFolders, capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, NAME)
    folders.user.parent.mkdir(parents=True)
    folders.user.write_text("no folder")
    assert migrate_one(capsys, NAME)["folder"] == str(folders.environment / "kernels" / NAME)


def test_no_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["migrate"]) == 2
    assert "--all" in capsys.readouterr().err
