"""`roost machine install` and `roost machine check`: the operator's side of the machine's book."""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from roost.launchers.daemon.file_input import UnfitFile, read_text, show_path
from roost.launchers.daemon.private_files import write_whole
from roost.launchers.machine_book.places import INSTALLED
from roost.launchers.machine_book.rules import (
    FILE,
    Amounts,
    BadRules,
    MachineRules,
    list_unknown,
    name_user,
    read_rules,
)
from roost.placement.model.format import format_amount, format_bytes
from roost.scheduler.errors import ConfigError, NotAllowed, RoostError

from .options import print_answer
from .tables import build_table, open_console, print_table

_MODE = 0o1777


def _read(file: Path) -> str:
    """Return the text of a file; empty if there is none, or none that can be read."""
    try:
        return read_text(file)
    except (OSError, UnfitFile):
        return ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the installation, with its sentences for people."""

    done: str
    planned: str
    run: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The folder that root makes for the machine's book, and the line that makes it again after each boot.

    `owner` has the uid and gid that root's files get.
    """

    folder: Path = INSTALLED
    tmpfiles: Path = Path("/etc/tmpfiles.d/roost.conf")
    owner: tuple[int, int] = (0, 0)
    systemd: Path = Path("/run/systemd/system")
    find_program: Callable[[str], str | None] = field(default=shutil.which)

    @property
    def line(self) -> str:
        return f"d {self.folder} 1777 root root -\n"

    @property
    def lasts(self) -> bool:
        """True if systemd makes the folder again after a boot."""
        return self.systemd.exists() or self.find_program("systemd-tmpfiles") is not None

    def find_steps(self) -> list[Step]:
        """Return the missing steps. Raises `RoostError` if something else stands where the folder belongs."""
        steps: list[Step] = []
        if _read(self.tmpfiles) != self.line:
            what = f"{self.tmpfiles} with the line `{self.line.rstrip()}`"
            steps.append(Step(f"Wrote {what}", f"write {what}", self._write_line))
        try:
            status = self.folder.lstat()
        except FileNotFoundError:
            what = f"the folder {self.folder}, mode 1777, owner root:root"
            return [*steps, Step(f"Made {what}", f"make {what}", self._make_folder)]
        if not stat.S_ISDIR(status.st_mode):
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "no folder"
            raise RoostError(f"{self.folder} is {kind}: remove it, then run this command again.")
        mode = stat.S_IMODE(status.st_mode)
        if mode != _MODE or (status.st_uid, status.st_gid) != self.owner:
            was = f"it had mode {mode:o} and owner {status.st_uid}:{status.st_gid}"
            what = f"mode 1777 and owner root:root: {was}"
            steps.append(Step(f"Gave {self.folder} {what}", f"give {self.folder} {what}", self._mend_folder))
        return steps

    def _write_line(self) -> None:
        self.tmpfiles.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_whole(self.tmpfiles, self.line.encode(), mode=0o644)
        self.tmpfiles.chmod(0o644)  # whatever the umask is

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700)
        self._mend_folder()

    def _mend_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, *self.owner)
            os.fchmod(descriptor, _MODE)  # last: until now only root could write there
        finally:
            os.close(descriptor)


def install(arguments: argparse.Namespace) -> int:
    return run_installation(arguments, Installation())


def run_installation(arguments: argparse.Namespace, installation: Installation) -> int:
    """Run the missing steps and print them. With `--dry-run`, print them only. May be repeated. Raises `RoostError`."""
    steps = installation.find_steps()
    if not arguments.dry_run:
        if os.geteuid() != 0:
            raise NotAllowed(f"Only root can do this: run {write_root_command('machine install')}.")
        for step in steps:
            try:
                step.run()
            except OSError as problem:
                raise RoostError(f"Cannot {step.planned}: {problem.strerror}.") from None
    document = {
        "is_dry_run": arguments.dry_run,
        "steps": [step.planned if arguments.dry_run else step.done for step in steps],
        "lasts": installation.lasts,
    }

    def show() -> None:
        for step in steps:
            print(f"Would {step.planned}." if arguments.dry_run else f"{step.done}.")
        if not steps:
            print(f"{installation.folder} and {installation.tmpfiles} are in place: nothing is to do.")
        if not installation.lasts:
            print("This machine has no systemd: run this command again after each boot, which empties /run.")
        if not arguments.dry_run:
            print("The agents of all users divide this machine there from their next kernel on.")
        print(f"Totals and limits belong in {FILE}, which is optional. `roost machine check` reads it.")

    return print_answer(arguments, document, show)


def write_root_command(command: str) -> str:
    """Return the command line, in backticks, that runs a command of roost as root.

    It has the path of this roost, because sudo has a PATH of its own.
    """
    program = Path(sys.argv[0])
    if program.name in ("roost", "jupyter-roost") and program.is_file():
        return f"`sudo {quote(str(program.absolute()))} {command}`"
    return f"`sudo {quote(sys.executable)} -m roost {command}`"


def check(arguments: argparse.Namespace) -> int:
    """Print the rules of this machine, and what applies to a user. Raises `RoostError` if the file is bad."""
    uid = find_uid(arguments.user) if arguments.user else os.getuid()
    file, rules = _read_file(arguments.file)
    machine = _measure()
    document = {
        "file": str(file),
        "exists": file.exists(),
        "totals": _list_amounts(rules.find_totals(machine)),
        "reserve": _list_amounts(rules.reserve),
        "for_kernels": _list_amounts(replace(rules.find_room(machine), gpus=rules.totals.gpus)),
        "gpu_ids": rules.gpu_ids,
        "shows_names": rules.shows_names,
        "user": {
            "uid": uid,
            "name": name_user(uid),
            "table": rules.find_table(uid),
            "limits": _list_amounts(rules.limit_of(uid)),
            "groups": {name: _list_amounts(limits) for name, limits in rules.groups_of(uid).items()},
        },
        "warnings": [
            *_find_warnings(file, rules, is_draft=bool(arguments.file)),
            *_find_useless(rules, machine),
        ],
    }
    return print_answer(arguments, document, lambda: _show_rules(document))


def find_uid(name: str) -> int:
    """Return the uid of a user, by name or uid. Raises `ConfigError`."""
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise ConfigError(f"There is no user {name!a:.80} on this machine.") from None


def _read_file(given: str | None) -> tuple[Path, MachineRules]:
    """Return the file of the rules, and the rules. A draft may belong to anybody, and must exist."""
    file = Path(given) if given else FILE
    if given and not os.path.lexists(file):
        raise RoostError(f"{show_path(file)} does not exist.")
    try:
        return file, read_rules(file, root=None if given else 0)
    except BadRules as problem:
        raise RoostError(f"{problem}.") from None


def _find_useless(rules: MachineRules, machine: Amounts) -> list[str]:
    """Return what in the rules has no effect, or leaves nothing."""
    room = replace(rules.find_room(machine), gpus=rules.totals.gpus)
    most = dict(room)
    found = [f"the reserve leaves no {name} for kernels" for name in ("cpus", "memory") if most[name] == 0]
    tables = {f"users.{name}": limits for name, limits in rules.users.items()}
    tables |= {f"groups.{name}": limits for name, limits in rules.groups.items()}
    for table, limits in tables.items():
        for name, amount in limits:
            if amount is not None and most[name] is not None and amount > most[name]:
                found.append(f"{table}.{name} is more than this machine has for kernels")
    return found


def _find_warnings(file: Path, rules: MachineRules, *, is_draft: bool) -> list[str]:
    found = [f"the table {table} is for nobody whom this machine knows" for table in list_unknown(rules)]
    if not is_draft and file.exists():
        can_all_read = file.stat().st_mode & stat.S_IROTH and file.parent.stat().st_mode & stat.S_IXOTH
        if not can_all_read:
            remedy = f"`chmod 755 {quote(str(file.parent))}; chmod 644 {quote(str(file))}`"
            found.append(f"others cannot read {file}, so their agents grant nothing: run {remedy}")
    return found


def _measure() -> Amounts:
    from roost.launchers.agent.machine.node_metrics import count_cpus, find_cgroups, find_memory_limit

    cgroups = find_cgroups()
    return Amounts(cpus=count_cpus(cgroups), memory_bytes=find_memory_limit(cgroups)[0])


def _list_amounts(amounts: Amounts) -> dict[str, float | None]:
    return {"cpus": amounts.cpus, "memory_bytes": amounts.memory_bytes, "gpus": amounts.gpus}


def _show_rules(document: dict[str, Any]) -> None:
    user = document["user"]
    out = open_console()
    if not document["exists"]:
        out.print(f"{document['file']} does not exist: nothing is limited.")
    table = build_table("", "CPUS", "MEMORY", "GPUS", right=("CPUS", "MEMORY", "GPUS"))

    def add(name: str, amounts: dict[str, float | None], none: str, gpus: str | None = None) -> None:
        cpus, memory = amounts["cpus"], amounts["memory_bytes"]
        count = amounts["gpus"]
        table.add_row(
            name,
            none if cpus is None else format_amount(cpus),
            none if memory is None else format_bytes(memory),
            (none if gpus is None else gpus) if count is None else format_amount(count),
        )

    add("this machine", document["totals"], "-", "by NVML")
    add("reserve for the system", document["reserve"], "-")
    add("for all kernels", document["for_kernels"], "-", "by NVML")
    add(f"user {user['name']}", user["limits"], "no limit")
    for name, limits in user["groups"].items():
        add(f"group {name}, together", limits, "no limit")
    print_table(out, table)
    if document["exists"]:
        applies = f"the table users.{user['table']} applies" if user["table"] else "no table in users applies"
        out.print(f"To user {user['name']}, {applies}.")
        names = "may" if document["shows_names"] else "may not"
        out.print(f"Users {names} see the names of others who hold something.")
    for warning in document["warnings"]:
        out.print(f"Warning: {warning}.")
