"""The files of `tests/conformance/programs/`: each has a header of comments, then cells.

# state: the time zone                     first line: the state that a fork could spoil
# needs: numpy, python>=3.11               what the kernel's environment must have, else the program is skipped
# env: TZ=Asia/Tokyo                       further variables; {folder} is the kernel's working folder
# flags: -X dev                            further flags of the interpreter
# python: {folder}/wrapper                 the file to run in place of the interpreter
# may be executed: a wrapper               why no zygote may serve this program
# never standby: a file of the user's       why no standby may serve this program
# end: killed                              the kernel is killed at the end: it would wait for its children
# in ci: yes                               `make test` runs this program

# %%                                       a cell; its output is compared
# %% setup                                 runs in the test's process, before the kernel starts; knows `folder`
# %% client                                runs in the test's process; `kernel` is a `Session`, `print` is compared
# %% interrupt: 0.5                        a cell that is interrupted after this time, in seconds
# %% stdin: Ada                            a cell that asks; the answers, separated by commas
# %% restart                               ends the kernel, and starts another of the same kind
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from roost.testing.deadlines import allow_s

FOLDER = Path(__file__).resolve().parents[2] / "conformance" / "programs"
_OPTION = re.compile(r"# (state|needs|env|flags|python|may be executed|never standby|end|in ci): (.+)")
_CELL = re.compile(r"# %%(?: (setup|client|interrupt|stdin|restart)(?:: (.+))?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell. `kind` is "" for a plain one."""

    kind: str
    argument: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program: its state, its needs and its cells."""

    name: str
    state: str
    cells: tuple[Cell, ...]
    needs: tuple[Requirement, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    python: str = ""
    may_be_executed: str = ""
    never_standby: str = ""
    is_killed: bool = False
    is_in_ci: bool = False

    def explain_missing(self, python: str) -> str:
        """Return a sentence about the first package that this interpreter lacks, or "" if it lacks none."""
        installed = list_packages(python)
        for wanted in self.needs:
            version = installed.get(canonicalize_name(wanted.name))
            if version is None:
                return f"The package {wanted.name} is not installed in the environment of {python}."
            if not wanted.specifier.contains(version, prereleases=True):
                return f"The program needs {wanted}, and {python} has {version}."
        return ""


def load_programs() -> list[Program]:
    """Return all programs, by name."""
    return [read_program(path) for path in sorted(FOLDER.glob("*.py"))]


def load(name: str) -> Program:
    return read_program(FOLDER / f"{name}.py")


def read_program(path: Path) -> Program:
    """Return the program in this file. Raise ValueError for a line of the header that means nothing."""
    lines = path.read_text().splitlines()
    first_cell = next((n for n, line in enumerate(lines) if line.startswith("# %%")), len(lines))
    options: dict[str, str] = {}
    for line in filter(None, lines[:first_cell]):
        match = _OPTION.fullmatch(line)
        if match is None:
            raise ValueError(f"{path.name}: not an option: {line}")
        options[match[1]] = match[2]
    if next(iter(options), "") != "state":
        raise ValueError(f"{path.name}: its first line names the state that a fork could spoil")
    cells = tuple(_read_cells(path, lines[first_cell:]))
    if not cells:
        raise ValueError(f"{path.name}: no cell")
    return Program(
        name=path.stem,
        state=options["state"],
        cells=cells,
        needs=tuple(Requirement(each) for each in re.split(r", (?=[a-z])", options.get("needs", "")) if each),
        env=dict(each.split("=", 1) for each in shlex.split(options.get("env", ""))),
        flags=tuple(shlex.split(options.get("flags", ""))),
        python=options.get("python", ""),
        may_be_executed=options.get("may be executed", ""),
        never_standby=options.get("never standby", ""),
        is_killed=options.get("end") == "killed",
        is_in_ci=options.get("in ci") == "yes",
    )


def _read_cells(path: Path, lines: list[str]) -> Iterator[Cell]:
    starts = [n for n, line in enumerate(lines) if line.startswith("# %%")]
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        match = _CELL.fullmatch(lines[start])
        if match is None:
            raise ValueError(f"{path.name}: not a cell: {lines[start]}")
        code = "\n".join(lines[start + 1 : stop]).strip("\n")
        yield Cell(kind=match[1] or "", argument=match[2] or "", code=code)


def explain_no_standby(python: str, program: Program, kind: str) -> str:
    """Return a sentence if this kind of kernel needs a standby and no standby may serve the program, or ""."""
    if kind != "standby":
        return ""
    never = f"No standby serves this program: {program.never_standby}." if program.never_standby else ""
    return explain_old_ipykernel(python) or never


def explain_old_ipykernel(python: str) -> str:
    """Return a sentence if roost builds no standby with this interpreter's ipykernel, or ""."""
    version = list_packages(python).get("ipykernel", "")
    is_old = tuple(map(int, version.split(".")[:2])) < (7, 1) if version else False
    return f"roost builds no standby with ipykernel {version}." if is_old else ""


@lru_cache
def list_packages(python: str) -> Mapping[str, str]:
    """Return the versions of the packages in this interpreter's environment, and that of `python` itself."""
    code = """
import importlib.metadata as m, json, platform
found = {d.metadata["Name"]: d.version for d in m.distributions() if d.metadata["Name"]}
print(json.dumps({**found, "python": platform.python_version()}))
"""
    listed = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True, timeout=allow_s(60)
    )
    return {canonicalize_name(name): version for name, version in json.loads(listed.stdout).items()}
