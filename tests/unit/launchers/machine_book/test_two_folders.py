"""Root makes its folder while agents have their promises elsewhere: each promise counts once, wherever it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.launchers.machine_book.book import MachineBook, View
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.rules import MachineRules, RulesReader

Open = Callable[[str], MachineBook]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Return the folders of the book, the best one first: `tmp` alone."""
    return [make(tmp_path, "tmp")]


@pytest.fixture
def open_book(folders: list[Path]) -> Open:
    """Return a function that opens the book of an agent."""

    def open_as(owner: str) -> MachineBook:
        return MachineBook(
            owner,
            cpus=8,
            memory_bytes=100,
            find=lambda: Place(folders[0], "shared"),
            list_folders=lambda: list(folders),
            rules=RulesReader(MachineRules, Path("/nonexistent")),
        )

    return open_as


def make(top: Path, name: str) -> Path:
    folder = top / name
    folder.mkdir(mode=0o1777)
    return folder


def sums(view: View) -> tuple[float, int, float]:
    return float(view.cpus), view.memory_bytes, float(view.devices.get("0", 0))


def test_a_promise_counts_once_after_its_agent_has_moved_it(
    folders: list[Path], open_book: Open, tmp_path: Path
) -> None:
    ada, bob = open_book("ada"), open_book("bob")
    ada.promise("a", cpus=2, memory_bytes=50, devices={"0": 0.5})
    assert sums(bob.look()) == (2, 50, 0.5)
    folders.insert(0, make(tmp_path, "roost"))
    assert sums(bob.look()) == (2, 50, 0.5), "it is still read from the older folder"
    ada.look()
    assert [len(os.listdir(folder)) for folder in folders] == [1, 1]
    assert sums(bob.look()) == (2, 50, 0.5)
    ada.give_back("a")
    assert [os.listdir(folder) for folder in folders] == [[], []]
    assert sums(bob.look()) == (0, 0, 0)
