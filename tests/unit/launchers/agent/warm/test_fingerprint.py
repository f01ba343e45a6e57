"""A fingerprint breaks with each change of a file that its zygote has read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.launchers.agent.warm.fingerprint import Fingerprint, stamp


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder `site` with a package of two modules, and a link to a third one."""
    (tmp_path / "site" / "package" / "part").mkdir(parents=True)
    (tmp_path / "site" / "package" / "__init__.py").write_text("a = 1")
    (tmp_path / "site" / "package" / "part" / "module.py").write_text("b = 1")
    (tmp_path / "site" / "link.py").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("c = 1")
    return tmp_path / "site"


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
    site.rename(site.with_name("old"))
    (site / "package/part").mkdir(parents=True)
    (site / "package/__init__.py").write_text("a = 1")
    (site / "package/part/module.py").write_text("b = 1")


def write_by_another_name(site: Path) -> None:
    os.link(site / "package/part/module.py", site.parent / "other.py")
    (site.parent / "other.py").write_text("b = 22")


def write_mapped_memory(site: Path) -> None:
    with open(site / "package/part/module.py", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[-1:] = b"2"
        memory.flush()


def write_the_target_of_a_link(site: Path) -> None:
    (site.parent / "elsewhere").write_text("c = 22")


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        replace_file,
        remove,
        set_time,
        replace_folder,
        replace_site,
        write_by_another_name,
        write_mapped_memory,
        write_the_target_of_a_link,
    ],
    ids=lambda do: do.__name__,
)
def test_a_changed_file_breaks_a_fingerprint(site: Path, change: Callable[[Path], None]) -> None:
    paths = [str(path) for path in site.rglob("*.py")]
    known = Fingerprint(files={path: stamp(path) for path in paths})
    (site / "package/data.txt").touch()
    assert known.broken_by() is None
    change(site)
    assert known.broken_by() in paths
