"""A fork can stand for a command that names the interpreter itself."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from roost.launchers.agent.warm.kernel_command import (
    KernelCommand,
    NotForked,
    NotInterpreter,
    check_command,
    choose_name,
    find_program,
    is_interpreter,
    parse_ipykernel_command,
)

FILE = "{connection_file}"


@pytest.mark.parametrize(
    ("argv", "flags", "args"),
    [
        (["python", "-m", "ipykernel_launcher", "-f", FILE], (), ()),
        (
            ["/p/python3", "-Xfrozen_modules=off", "-m", "ipykernel", "-f", FILE],
            ("-Xfrozen_modules=off",),
            (),
        ),
        (["python", "-X", "dev", "-I", "-m", "ipykernel_launcher", "-f", FILE], ("-X", "dev", "-I"), ()),
        (["python", "/x/ipykernel_launcher.py", "-f", FILE, "--debug"], (), ("--debug",)),
        (
            ["python", "-m", "ipykernel_launcher", "--matplotlib=inline", "-f", "/a/file"],
            (),
            ("--matplotlib=inline",),
        ),
    ],
)
def test_an_ipykernel_is_recognised(argv: list[str], flags: tuple[str, ...], args: tuple[str, ...]) -> None:
    command = parse_ipykernel_command(argv)
    assert command is not None
    assert (command.python, command.flags, command.args) == (argv[0], flags, args)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["R", "--slave", "-e", "IRkernel::main()", "--args", FILE],
        ["python", "-m", "bash_kernel", "-f", FILE],
        ["python", "-c", "import ipykernel", "-f", FILE],
        ["python", "-m", "ipykernel_launcher"],
        ["python", "-m", "ipykernel_launcher", "-f"],
        ["python", "-m", "ipykernel_launcher", "-f", FILE, "-f", FILE],
        ["env", "A=1", "python", "-m", "ipykernel_launcher", "-f", FILE],
        ["conda", "run", "python", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-i", "-m", "ipykernel_launcher", "-f", FILE],
    ],
)
def test_other_commands_are_no_ipykernel(argv: list[str]) -> None:
    assert parse_ipykernel_command(argv) is None


def test_python_is_looked_up_in_the_kernels_path_and_its_links_are_kept(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    assert find_program("python", {"PATH": str(tmp_path)}) == str(tmp_path / "python")
    assert find_program("no-such-python", {"PATH": str(tmp_path)}) is None


def test_a_relative_path_starts_in_the_kernels_folder(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert find_program("bin/python", {}, str(tmp_path)) == str(tmp_path / "bin/python")
    assert find_program("bin/python", {}, "/") is None


def test_an_interpreter_may_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to(sys.executable)
    assert is_interpreter(sys.executable)
    assert is_interpreter(str(tmp_path / "python"))


def test_names_of_one_file_in_one_folder_are_one_name(tmp_path: Path) -> None:
    for folder, target in (("a", sys.executable), ("b", sys.executable)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python3.12").symlink_to(target)
    names = [str(tmp_path / "a" / name) for name in ("python", "python3", "python3.12")]
    assert [choose_name(name) for name in names] == names  # nothing but python3.12 exists
    Path(names[1]).symlink_to("python3.12")
    assert choose_name(names[2]) == names[1]
    Path(names[0]).symlink_to("python3")
    assert {choose_name(name) for name in names} == {names[0]}
    assert choose_name(str(tmp_path / "b" / "python3.12")) == str(tmp_path / "b" / "python3.12")
    Path(names[0]).unlink()
    Path(names[0]).symlink_to(shutil.which("env") or "/usr/bin/env")
    assert choose_name(names[2]) == names[1]


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_a_program_that_starts_an_interpreter_is_none(tmp_path: Path) -> None:
    """Shims of pyenv and asdf are scripts. A shim of mise is a link to another compiled program."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    script.chmod(0o755)
    assert not is_interpreter(str(script))
    shim = tmp_path / "python3"
    shim.symlink_to(shutil.which("env") or "/usr/bin/env")
    assert not is_interpreter(str(shim))
    assert not is_interpreter(str(tmp_path / "missing"))
    (tmp_path / "empty").touch()
    assert not is_interpreter(str(tmp_path / "empty"))
    with pytest.raises(NotInterpreter, match=f"{script} is not the Python interpreter itself"):
        check_command(KernelCommand(python="python"), str(script))


def test_a_program_is_looked_at_again_when_it_was_replaced(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.symlink_to(sys.executable)
    assert is_interpreter(str(program))
    program.unlink()
    program.write_text("#!/bin/sh\n")
    assert not is_interpreter(str(program))


@pytest.mark.parametrize("launcher", ["ipykernel", "/x/ipykernel_launcher.py"])
def test_another_launcher_is_executed(launcher: str) -> None:
    """Its `sys.argv` and `sys.path` differ, and a script of that name may be another one."""
    with pytest.raises(NotForked, match=launcher):
        check_command(KernelCommand(python=sys.executable, launcher=launcher), sys.executable)
