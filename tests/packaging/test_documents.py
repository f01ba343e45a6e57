"""Documents and docstrings of packages name files and modules that exist. Each package names all its files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("launchers", "placement", "provisioners", "scheduler")
FOLDERS = (*PRODUCT, "benchmarks", "docs", "tests")
DOCUMENTS = (
    *(
        ROOT / name
        for name in (
            "README.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "benchmarks/README.md",
            "scheduler/core/README.md",
        )
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
)
"""The changelog is none of them, because it names modules that have moved."""

_PORTS = ("the agent's", "the report port", "a kernel's five", "a kept launcher's", "the metrics'")
"""The rows of the table of ports in `docs/security.md`. They make no claim."""
CODE = re.compile(r"`([^`]+)`")
FILE = re.compile(r"(?![\w./-]*(?:jupyter_\w+|roost_gateway)_config)[\w./-]+\.py")
"""A Python file of the repository. A file such as `jupyter_roost_config.py` is the reader's own."""
FOLDER = re.compile(rf"({'|'.join(FOLDERS)})/([\w.-]+/)*")
MODULE = re.compile(rf"\broost((?:\.(?:{'|'.join(PRODUCT)}))(?:\.\w+)+)")


def find_wrong_names(text: str, files: Sequence[str]) -> Iterator[str]:
    """Yield the names in a Markdown text that belong to none of `files`, which are paths relative to the repository.

    A file may be named without its folders. In a row of a table that begins with a folder, it must be in that folder.
    """
    for line in text.splitlines():
        names = CODE.findall(line)
        home = ""
        if line.startswith("| `") and names and FOLDER.fullmatch(names[0]):
            home = names[0]
        for name in names:
            if FILE.fullmatch(name):
                is_right = any(f"/{file}".endswith(f"/{name}") and file.startswith(home) for file in files)
            else:
                is_right = not FOLDER.fullmatch(name) or any(file.startswith(name) for file in files)
            if not is_right:
                yield name
        yield from (match[0] for match in MODULE.finditer(line) if not _is_importable(match[1][1:], files))


def _is_importable(name: str, files: Sequence[str]) -> bool:
    """True if `name`, without `roost.`, is a module or package, or if the module before its last dot has that name."""
    path, _, attribute = name.replace(".", "/").rpartition("/")
    if f"{path}/{attribute}.py" in files or f"{path}/{attribute}/__init__.py" in files:
        return True
    homes = [file for file in (f"{path}.py", f"{path}/__init__.py") if file in files]
    return any(re.search(rf"\b{attribute}\b", (ROOT / file).read_text(encoding="utf-8")) for file in homes)


def _list_files() -> list[str]:
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "node_modules" not in path.parts
    ]
    assert len(found) > 500
    return found


def test_wrong_names_are_found() -> None:
    files = ["placement/pipeline.py", "placement/rules/filters.py", "placement/rules/__init__.py"]
    right = "`pipeline.py`, `rules/filters.py`, `placement/rules/`, `jupyter_roost_config.py`, roost.placement.rules"
    assert list(find_wrong_names(right, files)) == []
    assert list(find_wrong_names("| `placement/rules/` | rules | `filters.py` |", files)) == []
    assert list(find_wrong_names("| `placement/rules/` | rules | `pipeline.py` |", files)) == ["pipeline.py"]
    wrong = "`filter.py`, `engine/filters.py`, `placement/engine/`, `roost.placement.filters` and `roost.placement.x.y`"
    expected = wrong.replace("`", "").replace(" and", ",").split(", ")
    assert sorted(find_wrong_names(wrong, files)) == sorted(expected)


def test_documents_name_files_that_exist() -> None:
    files = _list_files()
    wrong = [
        f"{path.relative_to(ROOT)} names {name}"
        for path in DOCUMENTS
        for name in find_wrong_names(path.read_text(encoding="utf-8"), files)
    ]
    assert wrong == []


def test_claims_about_security_name_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", text)
    assert len(named) > 15
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`tests/" not in line]
    assert {row.split("|")[1].strip() for row in rows} <= {"it cannot", "port", *_PORTS}, (
        "a claim without a test"
    )
    for file, name in named:
        assert name, f"{file} is named without its test"
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


def test_packages_name_all_their_files() -> None:
    """The docstring of a package names each of its modules, and no Python file that is gone."""
    files = _list_files()
    wrong = []
    for top in PRODUCT:
        for package in sorted((ROOT / top).rglob("__init__.py")):
            drawing = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
            home = package.relative_to(ROOT).as_posix()
            wrong += [
                f"{home} does not name {path.name}"
                for path in sorted(package.parent.glob("*.py"))
                if path != package and not re.search(rf"\b{path.stem}\b", drawing)
            ]
            named = re.findall(r"[\w/]*\w\.py\b", drawing)
            wrong += [
                f"{home} names {name}"
                for name in named
                if not any(f"/{file}".endswith(f"/{name}") for file in files)
            ]
    assert wrong == []
