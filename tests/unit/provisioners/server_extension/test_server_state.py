"""A server's name, and its files for the next server of that name."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.machine.bad_files import BAD_FILES
from kit.machine.cases import find_wrong
from kit.machine.killed_writer import die_while_writing
from roost.provisioners.server_extension.server_state import ServerState, choose_server_name
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.errors import ConfigError

HEADER = {"msg_id": "m", "session": "a client"}


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def server(**changes: Any) -> Any:
    return SimpleNamespace(**{"base_url": "/", "root_dir": "/tmp", "sock": "", "port": 8888, **changes})


def test_the_name_is_where_a_server_serves_or_jupyterhubs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        choose_server_name(each)
        for each in (
            server(),
            server(port=8889),
            server(root_dir="/"),
            server(base_url="/b/"),
            server(sock="/s"),
        )
    }
    assert len(names) == 5
    assert choose_server_name(server()) == choose_server_name(server())
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert choose_server_name(server()) == "/user/ada/"


def test_one_server_has_a_name_at_a_time() -> None:
    first = ServerState("ours")
    assert first.has_lock
    second = ServerState("ours")
    assert not second.has_lock
    assert "another server named 'ours' runs" in second.problem
    assert ServerState("other").has_lock
    first.close()
    assert ServerState("ours").has_lock


def test_the_next_server_knows_the_kernels() -> None:
    first = ServerState("ours")
    first.note("k", name="python3", cwd="/work", session="a.ipynb")
    first.note("gone", name="python3")
    first.forget("gone")
    first.forget("never there")
    first.close()
    assert ServerState("ours").kernels == {"k": {"name": "python3", "cwd": "/work", "session": "a.ipynb"}}


def test_a_cell_that_was_held_is_told_once_and_to_its_client() -> None:
    first = ServerState("ours")
    first.note_held("k", [HEADER, {"msg_id": "n", "session": "another"}])
    first.close()
    second = ServerState("ours")
    assert second.take_lost_cells("other", "a client") == []
    assert second.take_lost_cells("k", "a client") == [HEADER]
    assert second.take_lost_cells("k", "a client") == []
    second.close()
    third = ServerState("ours")
    assert third.take_lost_cells("k", "a client") == []
    assert third.take_lost_cells("k", "another") != []


def test_a_cell_that_runs_is_not_told() -> None:
    first = ServerState("ours")
    first.note_held("k", [HEADER])
    first.note_held("k", [])
    first.close()
    assert ServerState("ours").lost_cells == {}


def test_the_folder_is_private(state_home: Path) -> None:
    state = ServerState("ours")
    state.note("k", name="python3")
    assert state.folder.is_relative_to(state_home)
    assert os.stat(state.folder).st_mode & 0o077 == 0
    assert all(os.stat(file).st_mode & 0o077 == 0 for file in state.folder.iterdir())
    load_key_pair(
        "", name="yarn", section="RoostYarnBackend"
    )  # it is in the same folder, and must be private


def test_a_folder_that_others_can_enter_is_refused(state_home: Path) -> None:
    (state_home / "roost").mkdir(mode=0o755)
    (state_home / "roost").chmod(0o755)
    with pytest.raises(ConfigError, match="can be entered by other users; run `chmod 700"):
        load_key_pair("", name="yarn", section="RoostYarnBackend")


def test_without_a_place_to_write_the_server_starts_all_the_same(
    state_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = state_home / "file"
    file.touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(file))
    state = ServerState("ours")
    assert not state.has_lock
    assert "nothing can be kept on disk" in state.problem
    state.note("k", name="python3")
    state.forget("k")


@pytest.mark.parametrize("name", ["kernels.json", "held.json", "sessions.db"])
def test_files_of_any_form_do_not_turn_the_extension_off(caplog: pytest.LogCaptureFixture, name: str) -> None:
    def check(kind: str) -> None:
        caplog.clear()
        state = ServerState(kind)
        state.close()
        (state.folder / name).unlink(missing_ok=True)
        BAD_FILES[kind](state.folder / name)
        state = ServerState(kind)
        assert (state.problem, state.has_lock) == ("", True)
        assert (state.kernels, state.lost_cells) == ({}, {})
        is_aside = os.path.lexists((state.folder / name).with_suffix(".unreadable"))
        messages = [record.getMessage() for record in caplog.records]
        start = f"{state.folder / name} is put aside"
        assert [message.startswith(start) for message in messages] == [True] * is_aside
        if name in ("kernels.json", "held.json") and kind not in ("types", "infinite"):
            assert is_aside
        state.note("k", name="python3")
        with contextlib.closing(sqlite3.connect(state.sessions)) as database:
            database.execute("CREATE TABLE IF NOT EXISTS session (x)")
        state.close()
        assert set(ServerState(kind).kernels) == {"k"}

    assert find_wrong(BAD_FILES, check) == []


def test_entries_of_any_form_are_left_out() -> None:
    state = ServerState("ours")
    state.close()
    good = {"name": "python3", "cwd": "/", "session": ""}
    bad = (
        {"abc": "x"},
        {"a": 7},
        {"a": {"name": 1}},
        {"a": {"cwd": "\0"}},
        {"": good},
        {"a\n": good},
        {"a" * 300: good},
    )
    for entry in bad:
        (state.folder / "kernels.json").write_text(json.dumps({**entry, "k": good}))
        (state.folder / "held.json").write_text(json.dumps({**entry, "k": [HEADER, 7, {}, {"msg_id": 1}]}))
        state = ServerState("ours")
        assert state.kernels == {"k": good}
        assert state.lost_cells == {"k": [HEADER]}
        state.close()


def test_what_a_killed_server_left_of_a_file_is_removed() -> None:
    first = ServerState("ours")
    die_while_writing(first.folder / "held.json")
    first.close()
    assert ".tmp" in str(list(first.folder.iterdir()))
    assert ServerState("ours").has_lock
    assert ".tmp" not in str(list(first.folder.iterdir()))
