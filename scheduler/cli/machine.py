"""`roost machine install`, and what other commands say about the machine's book."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

import psutil

from roost.launchers.agent.machine.gpus import DeviceReader
from roost.launchers.daemon.file_input import UnfitFile, read_text
from roost.launchers.daemon.private_files import write_whole
from roost.launchers.daemon.process import describe_process
from roost.launchers.machine_book.places import INSTALLED, find_place
from roost.launchers.machine_book.promise import Found, list_living, read_folder
from roost.launchers.machine_book.rules import FILE, BadRules, read_rules
from roost.placement.model.format import format_bytes, format_count
from roost.scheduler.errors import NotAllowed, RoostError
from roost.scheduler.messages import Finding, format_names

from .options import print_answer

_MODE = 0o1777
_WAYS = {
    "installed": "the agents of all users divide this machine through {}, which root has made",
    "shared": "the agents of all users divide this machine through {}, a folder of the system",
    "chosen": "agents with ROOST_MACHINE_DIR={} divide this machine among themselves: others do not count",
}
"""The sentence for each way in which the folder of the machine's book was found."""
_NVML_S = 3.0
"""How long NVML may take."""


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
        print(f"Totals and limits belong in {FILE}, which is optional.")

    return print_answer(arguments, document, show)


def write_root_command(command: str) -> str:
    """Return the command line, in backticks, that runs a command of roost as root.

    It has the path of this roost, because sudo has a PATH of its own.
    """
    program = Path(sys.argv[0])
    if program.name in ("roost", "jupyter-roost") and program.is_file():
        return f"`sudo {quote(str(program.absolute()))} {command}`"
    return f"`sudo {quote(sys.executable)} -m roost {command}`"


def find_problems() -> list[Finding]:
    """Return what divides this machine between its users, and what is wrong with that, for `roost doctor`."""
    place = find_place()
    install = f"run {write_root_command('machine install')}"
    if place.folder is None:
        what = f"nobody divides this machine between its users: {place.why}"
        return [{"level": "warning", "what": what, "do": f"if others use roost here, {install}"}]
    what = _WAYS[place.way].format(place.folder)
    found: list[Finding] = [{"level": "ok", "what": what, "do": ""}]
    if place.why:
        found = [{"level": "warning", "what": f"{what}: {place.why}", "do": install}]
    try:
        read_rules()
    except BadRules as problem:
        do = "correct it as root: until then, no kernel starts that asks for CPUs, memory or GPUs"
        found.append({"level": "error", "what": str(problem), "do": do})
    files = _read_book(place.folder)
    if unfit := [each for each in files if each.problem]:
        what = f"{format_count(len(unfit), 'file')} in the machine's book cannot be read: {unfit[0].problem}"
        found.append({"level": "warning", "what": what, "do": f"ask the user with uid {unfit[0].uid}"})
    return found + _find_outside_use(files)


def _find_outside_use(files: Sequence[Found]) -> list[Finding]:
    """Return a warning about processes that use GPUs, if neither they nor an ancestor is in a kernel's session."""
    named = {keeper.pid for each in list_living(files) for keeper in each.promise.keepers}
    reader = DeviceReader(first_wait_s=_NVML_S)
    reader.close()
    outside = []
    for pid in sorted(reader.memory_by_pid):
        with contextlib.suppress(OSError, psutil.Error):  # it has ended
            family = [pid, *(parent.pid for parent in psutil.Process(pid).parents())]
            if named.isdisjoint(map(os.getsid, family)):
                outside.append(pid)
    if not outside:
        return []
    programs = (
        f"{format_count(len(outside), 'program')} outside roost {'uses' if len(outside) == 1 else 'use'} GPUs"
    )
    what = f"{programs}: {format_names([describe_process(pid) for pid in outside])}"
    return [{"level": "warning", "what": what, "do": "look whether kernels find enough memory there"}]


def describe_others() -> str:
    """Return what other users of this machine hold, as a list for people; empty if they hold nothing."""
    folder = find_place().folder
    held = [] if folder is None else list_living(_read_book(folder))
    others = [each.promise for each in held if each.uid != os.getuid()]
    cpus = sum(each.cpus for each in others)
    memory_bytes = sum(each.memory_bytes for each in others)
    gpus = sum(sum(each.devices.values()) for each in others)
    parts = [format_count(cpus, "CPU")] if cpus else []
    parts += [f"{format_bytes(memory_bytes)} of memory"] if memory_bytes else []
    parts += [format_count(gpus, "GPU")] if gpus else []
    return ", ".join(parts)


def _read_book(folder: Path) -> list[Found]:
    """Return what the files of all agents have; nothing if there is no such folder. Takes no lock."""
    try:
        return list(read_folder(folder).values())
    except OSError:
        return []
