"""A watch on folders notices what may have changed in them, and tells local file systems from others."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.launchers.agent.warm import folder_watch
from roost.launchers.agent.warm.fingerprint import Fingerprint, stamp
from roost.launchers.agent.warm.folder_watch import FolderWatch, find_local
from roost.launchers.daemon import inotify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
Q_OVERFLOW = 0x4000  # from linux/inotify.h
MOUNTS = """\
20 1 0:1 / / rw - ext4 /dev/vda rw
21 20 0:2 / /home rw shared:1 - nfs4 server:/home rw
22 20 0:3 / /home/ada/my\\040disk rw - xfs /dev/vdb rw
23 20 0:4 / /net rw - ext4 /dev/vdc rw
24 23 0:5 / /net rw - fuse.sshfs server: rw
"""


@pytest.fixture
def watch() -> Iterator[FolderWatch]:
    watch = FolderWatch()
    yield watch
    watch.close()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder `site` with a package of two modules."""
    (tmp_path / "site" / "package" / "part").mkdir(parents=True)
    (tmp_path / "site" / "package" / "__init__.py").write_text("a = 1")
    (tmp_path / "site" / "package" / "part" / "module.py").write_text("b = 1")
    return tmp_path / "site"


def fingerprint(site: Path, watch: FolderWatch, *also: Path) -> Fingerprint:
    """Return the watched fingerprint of all modules in `site`, and of `also`. It has looked at them once."""
    paths = [str(path) for path in (*site.rglob("*.py"), *also)]
    made = Fingerprint(files={path: stamp(path) for path in paths}, watch=watch)
    assert made.broken_by() is None
    return made


def looked_at(fingerprint: Fingerprint, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Check the fingerprint. Return the names of the files that this looked at."""
    seen: set[str] = set()
    plain = os.stat

    def look(path: str, **options: object) -> os.stat_result:
        seen.add(os.path.basename(path))
        return plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", look)
        fingerprint.broken_by()
    return {name for name in seen if name.endswith(".py")}


def rewrite(site: Path) -> None:
    (site / "package/part/module.py").write_text("b = 22")


def replace_file(site: Path) -> None:
    (site / "new.py").write_text("b = 2")
    (site / "new.py").replace(site / "package/part/module.py")


def remove(site: Path) -> None:
    (site / "package/part/module.py").unlink()


def set_time(site: Path) -> None:
    os.utime(site / "package/part/module.py", (1, 1))


def replace_folder(site: Path) -> None:
    (site / "package/part").rename(site / "package/old")
    (site / "package/part").mkdir()
    (site / "package/part/module.py").write_text("b = 3")


def replace_site(site: Path) -> None:
    """Replace a folder above all watched ones, which reports nothing."""
    site.rename(site.with_name("old"))
    (site / "package/part").mkdir(parents=True)
    (site / "package/__init__.py").write_text("a = 1")
    (site / "package/part/module.py").write_text("b = 1")


@pytest.mark.parametrize(
    "change",
    [rewrite, replace_file, remove, set_time, replace_folder, replace_site],
    ids=lambda do: do.__name__,
)
def test_a_watched_fingerprint_breaks_as_an_unwatched_one(
    site: Path, watch: FolderWatch, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = fingerprint(site, watch)
    assert looked_at(known, monkeypatch) == set()
    change(site)
    assert known.broken_by() in {str(site / "package/__init__.py"), str(site / "package/part/module.py")}


def test_after_a_change_of_another_file_all_are_looked_at_once(
    site: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = fingerprint(site, watch)
    (site / "package/data.txt").touch()
    assert looked_at(known, monkeypatch) == {"__init__.py", "module.py"}
    assert looked_at(known, monkeypatch) == set()
    rewrite(site)
    assert known.broken_by() is not None


def test_a_folder_that_was_away_and_is_back_is_watched_again(site: Path, watch: FolderWatch) -> None:
    known = fingerprint(site, watch)
    part = site / "package/part"
    part.rename(site / "away")
    (site / "away").rename(part)
    assert known.broken_by() is None
    rewrite(site)
    assert known.broken_by() == str(part / "module.py")


def test_a_change_by_another_name_of_the_file_is_noticed(
    site: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = fingerprint(site, watch)
    other = site.parent / "other.py"
    os.link(site / "package/part/module.py", other)
    assert known.broken_by() is None
    assert looked_at(known, monkeypatch) == set()
    other.write_text("b = 22")
    assert known.broken_by() == str(site / "package/part/module.py")


def test_a_write_through_mapped_memory_is_seen_by_a_look_at_all_files(site: Path, watch: FolderWatch) -> None:
    known = fingerprint(site, watch)
    with open(site / "package/part/module.py", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[-1:] = b"2"
        memory.flush()
    assert known.broken_by() is None
    assert known.look_at_all() == str(site / "package/part/module.py")


def test_links_are_always_looked_at(site: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "link.py").symlink_to(site / "elsewhere")
    (site / "elsewhere").write_text("c = 1")
    known = fingerprint(site, watch)
    assert looked_at(known, monkeypatch) == {"link.py"}
    (site / "elsewhere").write_text("c = 22")
    assert known.broken_by() == str(site / "link.py")


def test_a_linked_folder_is_noticed_when_its_target_is_replaced(site: Path, watch: FolderWatch) -> None:
    target = site.parent / "target"
    (site / "package/part").rename(target)
    (site / "package/part").symlink_to(target)
    known = fingerprint(site, watch, site / "package/part/module.py")
    target.rename(site.parent / "old")
    target.mkdir()
    (target / "module.py").write_text("b = 4")
    assert known.broken_by() is not None


def test_files_on_other_file_systems_are_always_looked_at(
    site: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_watch, "_LOCAL", frozenset())
    assert looked_at(fingerprint(site, watch), monkeypatch) == {"__init__.py", "module.py"}


def test_without_room_for_watches_all_files_are_looked_at(
    site: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_watch, "_MOST", 3)
    known = fingerprint(site, watch)
    assert looked_at(known, monkeypatch) == {"__init__.py", "module.py"}
    known.close()
    watch.close()
    monkeypatch.setattr(folder_watch, "_MOST", 4)
    for _ in range(2):
        known = fingerprint(site, watch)
        assert looked_at(known, monkeypatch) == set()
        known.close()


def test_editors_keep_most_of_the_watches_that_the_system_allows(
    site: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(folder_watch, "_ALLOWED", tmp_path / "max_user_watches")
    (tmp_path / "max_user_watches").write_text("15\n")
    assert looked_at(fingerprint(site, watch), monkeypatch) == {"__init__.py", "module.py"}
    watch.close()
    (tmp_path / "max_user_watches").write_text("16\n")
    assert looked_at(fingerprint(site, watch), monkeypatch) == set()


def test_a_watch_ends_with_the_last_fingerprint_that_uses_it(site: Path, watch: FolderWatch) -> None:
    first, second = fingerprint(site, watch), fingerprint(site, watch)
    first.close()
    rewrite(site)
    assert second.broken_by() is not None
    second.close()
    assert first.broken_by() is not None, "this check watches nothing again"
    before = watch.read()
    rewrite(site)
    assert watch.read() == before


def test_a_lost_event_counts_as_a_change(
    watch: FolderWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert watch.add([str(tmp_path)]) is not None
    overflow = inotify._EVENT.pack(-1, Q_OVERFLOW, 0, 0)
    answers = [overflow]

    def read(fd: int, size: int) -> bytes:
        if not answers:
            raise BlockingIOError
        return answers.pop()

    before = watch.read()
    monkeypatch.setattr(os, "read", read)
    assert watch.read() == before + 1


@pytest.mark.parametrize(
    ("folder", "is_local"),
    [
        ("/opt/python", True),
        ("/home/ada/lib", False),
        ("/home/ada/my disk/lib", True),
        ("/net/lib", False),  # the later mount covers the earlier one
    ],
)
def test_local_file_systems(tmp_path: Path, folder: str, is_local: bool) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert find_local([folder], tmp_path / "mountinfo") == ({folder} if is_local else set())


def test_without_a_list_of_mounts_nothing_is_local(tmp_path: Path) -> None:
    assert find_local(["/opt"], tmp_path / "missing") == set()
