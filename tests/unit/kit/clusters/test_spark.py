"""The pure parts of Spark for the tests: the reasons for a skip, and the names in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kit.clusters.spark import build, image


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return build.cache()


@pytest.mark.parametrize(
    ("missing", "reason"), [("java", "Java is missing"), ("", "not installed yet: `make build-spark`")]
)
def test_the_missing_part_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str, reason: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == missing else f"/bin/{name}")
    assert reason in str(build.why_not())


def test_half_an_installation_does_not_count(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        folder.mkdir()
        raise RuntimeError("no network")

    monkeypatch.setattr(build, "java", lambda: "/bin/java")
    monkeypatch.setattr(build, "_install", fail)
    with pytest.raises(RuntimeError, match="no network"):
        build.build(report=str)
    assert "not installed yet" in str(build.why_not())
    assert not list(cache.glob("half-built-*"))


def test_a_changed_file_of_the_documentation_makes_another_image(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = image.images()
    examples = tmp_path / "examples"
    shutil.copytree(image._EXAMPLES, examples)
    monkeypatch.setattr(image, "_EXAMPLES", examples)
    assert image.images() == before
    with open(examples / "executor.sh", "a") as file:
        file.write("# changed\n")
    assert image.images() != before
