"""The key of a zygote: all that a start has in common with the other starts that the zygote serves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from roost.launchers.protocol.process_context import ProcessContext, select_at_start

_READ_BY_C_CODE = (
    "PYTHON", "LD_", "OMP_", "OPENBLAS_", "GOTO_", "MKL_", "KMP_", "BLIS_", "VECLIB_", "NUMEXPR_",
    "MALLOC_", "GLIBC_", "LC_", "LANG",
)  # fmt: skip


class Key(NamedTuple):
    """The interpreter, its flags, its folder and variables. A start with another key needs another zygote."""

    python: str
    """The path of the interpreter, with links. Names of one file in one folder have one path here (`choose_name`)."""
    flags: tuple[str, ...]
    folder: str
    """The folder on which imports or start-up code depend, or `/`."""
    variables: tuple[tuple[str, str], ...]
    """The variables that are read before Python code can record that it reads them."""
    is_whole: bool = False
    """True if `variables` has all variables without JPY_* and KERNEL_*.

    Start-up code of this Python, such as `sitecustomize`, may read any of them.
    """

    cpus: tuple[int, ...] = ()
    """The CPUs on which the program starts. Libraries count them when they are imported."""
    stack: tuple[int, ...] = ()
    """The limits of the stack with which the program starts. They fix the layout of the process."""

    def with_all(self, program: str, env: Mapping[str, str], cwd: str) -> Key:
        """Return the key for a Python with start-up code.

        That code may read its interpreter's name `program`, all variables, and the files of its folder.
        """
        # roost's own variables may name the lease.
        known = {name: value for name, value in drop_per_kernel(env).items() if not name.startswith("ROOST_")}
        variables = tuple(sorted(known.items()))
        return self._replace(python=program, folder=cwd, variables=variables, is_whole=True)


def build_key(
    python: str, flags: tuple[str, ...], env: Mapping[str, str], cwd: str, context: ProcessContext
) -> Key:
    variables = tuple(select_import_environment(env).items())
    start = select_at_start(context)
    folder = choose_import_folder(env, cwd)
    return Key(python, flags, folder, variables, cpus=start.cpus, stack=tuple(start.limits["STACK"]))


def varies_by_kernel(name: str) -> bool:
    """True if the environment variable `name` differs from kernel to kernel.

    Zygotes never get such variables.
    """
    return name.startswith(("JPY_", "KERNEL_"))


def drop_per_kernel(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not varies_by_kernel(name)}


def select_import_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the interpreter, the loader and C libraries read, unseen by Python code.

    HOME is one of them: the interpreter looks there for the user's packages.
    """
    return {
        name: value
        for name, value in sorted(env.items())
        if name.startswith(_READ_BY_C_CODE) or name == "HOME"
    }


def choose_import_folder(env: Mapping[str, str], cwd: str) -> str:
    """Return the folder on which imports depend: `cwd` if PYTHONPATH has relative entries, otherwise `/`."""
    entries = env["PYTHONPATH"].split(os.pathsep) if env.get("PYTHONPATH") else []
    return "/" if all(os.path.isabs(entry) for entry in entries) else cwd
