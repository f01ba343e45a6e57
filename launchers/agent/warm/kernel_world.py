"""Everything that makes a kernel's world, and how a fork gets it: the one list behind the decision to fork or execute.

A forked kernel must be the kernel that its command would have started: on this machine in the application's context, on
a node in that of the node's agent. docs/forks.md shows this list. Each row has a test
(`tests/forks/test_kernel_world.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Treatment = Literal["compared", "set", "inherited", "executed", "differs"]
"""How a fork gets a part of its world.

`compared`: a zygote with another value does not serve the kernel. `set`: the fork sets it, as a fresh process has it.
`inherited`: the zygote has it from the agent or from its own start, unchanged. `executed`: the kernel is executed
instead of forked. `differs`: a fork has another value, which is documented.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a kernel's world."""

    name: str
    treatment: Treatment
    how: str
    """The way in which the fork gets it: a sentence."""


def _build(treatment: Treatment, parts: Mapping[str, str]) -> tuple[Part, ...]:
    return tuple(Part(name=name, treatment=treatment, how=how) for name, how in parts.items())


KERNEL_WORLD: tuple[Part, ...] = (
    *_build(
        "compared",
        {
            "program": "argv[0] names the file that the zygote runs, links followed.",
            "interpreter flags": "A zygote has the same flags (-X, -W, -O, -I, …).",
            "variables read at import": "Variables that C libraries or imported modules have read are equal.",
            "start-up code": "If this Python runs start-up code, all variables and the working folder are equal.",
            "imported files": "The files of all imported modules are unchanged since the zygote imported them.",
            "modules in the working folder": "The working folder has no module that hides one of the zygote's.",
            "configuration of IPython": "A standby kernel serves only users without configuration files.",
            "counted CPUs": "The program started on the same CPUs (affinity), because libraries count them at import.",
            "stack limit": "The limit of the stack acts when a program starts, so it is the zygote's.",
        },
    ),
    *_build(
        "set",
        {
            "environment": "os.environ and the C library have the kernel's variables.",
            "notebook variable": "JPY_PARENT_PID is 1, at which ipykernel watches no process.",
            "working folder": "The fork changes to it.",
            "umask": "The application's, on this machine.",
            "limits": "Soft and hard limits of the application, on this machine.",
            "affinity and priority": "CPUs, niceness and other priorities of the application, on this machine.",
            "groups": "Groups of the application, on this machine, where the system allows it.",
            "control group": "The fork joins the group of its lease.",
            "session": "The fork leads a session and a process group of its own.",
            "standard streams": "stdin is empty, stdout and stderr go to the kernel's log.",
            "descriptors": "Received files and sockets close when a program is executed. Others do not exist.",
            "signals": "No signal is blocked, and handlers are those of a fresh interpreter.",
            "random numbers": "Generators of Python, numpy and PyTorch draw new numbers in each fork.",
            "time zone": "The C library reads TZ again.",
            "folder for temporary files": "It is chosen again from the kernel's variables.",
            "command line": "sys.argv, sys.orig_argv and /proc/PID/cmdline are those of the command.",
            "shown variables": "/proc/PID/environ has the kernel's variables.",
            "main module": "__main__ is a fresh module, with the launcher's path.",
            "main thread": "Its native id is that of the fork.",
            "connection file": "It is called kernel-ID.json, as with plain Jupyter.",
        },
    ),
    *_build(
        "inherited",
        {
            "user and rights": "User, capabilities and security profile are the agent's.",
            "namespaces": "Each world of namespaces and job has an agent of its own.",
            "import path": "sys.path is that of the same interpreter in the same folder.",
            "locale": "Its variables are compared, so the zygote's locale is the kernel's.",
            "settings of the interpreter": "Recursion limit, hooks, filters of warnings: those after the imports.",
        },
    ),
    *_build(
        "executed",
        {
            "other commands": "A script, a shim, `conda run`, `env` or another launcher starts the interpreter.",
            "what start-up code began": "A thread, a trace, a timer, a process, an open file, an exit handler, …",
            "threads of imports": "A module in `preload` starts a thread.",
            "`fork` is false": "The kernelspec sets `fork` to false.",
            "no warm process": "No zygote for this environment is ready yet, as at the first start.",
        },
    ),
    *_build(
        "differs",
        {
            "parent": "The parent is roost's agent. With plain Jupyter, it is the application.",
            "process of start-up code": "Start-up code has seen the zygote's pid and command line.",
            "start time": "The process may have been forked some minutes before the kernel's start.",
            "hash seed": "Kernels of one zygote share the seed of hashes and the addresses of libraries.",
            "loaded modules": "sys.modules also has what a fresh kernel would import with its first cells.",
            "garbage collector": "gc.get_objects() and gc.get_referrers() leave out the zygote's objects.",
            "reference counts": "On Python 3.12 and newer, objects of the zygote are immortal.",
            "out of memory score": "It is 500, as for all kernels of roost: they end before the agent.",
        },
    ),
)
