"""Ways to spoil a fork on purpose. The comparison must see each of them.

`write_spoilt_script` makes a copy of the zygote's files. There, each kernel runs the spoil that the variable
KERNEL_SPOIL names, after it has become a process of its own and before it is a kernel. One zygote serves all spoils.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.agent.warm.zygote_start import SCRIPT

VARIABLE = "KERNEL_SPOIL"
"""Zygotes never read a variable of this beginning, and it does not choose a zygote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoil:
    """A way to spoil a kernel: the state, code that knows `os`, `signal` and `sys`, and a program that notices it."""

    state: str
    code: str
    program: str
    is_in_ci: bool = False


def _spoil(program: str, state: str, code: str, *, ci: bool = False) -> Spoil:
    return Spoil(state=state, code=code, program=program, is_in_ci=ci)


SPOILS = (
    _spoil("random_numbers", "the seed of random", "import random; random.seed(1)", ci=True),
    _spoil("random_numpy_legacy", "the seed of numpy", "import numpy; numpy.random.seed(1)", ci=True),
    _spoil(
        "tempfile_names",
        "the names of temporary files",
        "import random, tempfile; names = tempfile._get_candidate_names();"
        " names._rng, names._rng_pid = random.Random(1), os.getpid()",
    ),
    _spoil("random_secrets_and_uuid", "the random numbers of the system", "os.urandom = bytes"),
    _spoil(
        "random_shuffled_names",
        "new ids",
        "import jupyter_client.session as session; session.new_id = lambda: 'always'",
    ),
    _spoil(
        "threads_listed",
        "a thread",
        "import threading, time; threading.Thread(target=time.sleep, args=(1e6,), daemon=True, name='left').start()",
        ci=True,
    ),
    _spoil(
        "threads_of_the_system",
        "a thread that Python does not know",
        "import _thread, time; _thread.start_new_thread(time.sleep, (1e6,))",
    ),
    _spoil(
        "threads_names_of_new_ones",
        "the counter of threads",
        "import threading; [threading.Thread(target=int) for _ in range(3)]",
    ),
    _spoil(
        "threads_start_and_join", "the stack of threads", "import threading; threading.stack_size(1 << 20)"
    ),
    _spoil("descriptors_kinds", "an open descriptor", "os.open('/etc/passwd', os.O_RDONLY)", ci=True),
    _spoil(
        "descriptors_inheritable",
        "an inheritable descriptor",
        "os.set_inheritable(os.open('/etc/passwd', os.O_RDONLY), True)",
        ci=True,
    ),
    _spoil("descriptors_kinds", "a pipe", "os.pipe()"),
    _spoil(
        "descriptors_standard_three", "the standard input", "os.dup2(os.open('/etc/passwd', os.O_RDONLY), 0)"
    ),
    _spoil(
        "zone_without_variable",
        "the time zone",
        "import time; os.environ['TZ'] = 'Asia/Tokyo'; time.tzset(); del os.environ['TZ']",
        ci=True,
    ),
    _spoil("locale_of_c_library", "the locale", "import locale; locale.setlocale(locale.LC_ALL, 'C')"),
    _spoil(
        "locks_of_imports",
        "the lock of an import",
        "import importlib; held = importlib._bootstrap._get_module_lock('colorsys'); held.acquire();"
        " importlib.held = held",
        ci=True,
    ),
    _spoil(
        "locks_all_in_memory",
        "a lock of a module",
        "import _thread, random; random.left = _thread.allocate_lock(); random.left.acquire()",
        ci=True,
    ),
    _spoil(
        "signals_mask",
        "a blocked signal",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])",
        ci=True,
    ),
    _spoil("signals_ignored", "an ignored signal", "signal.signal(signal.SIGUSR2, signal.SIG_IGN)", ci=True),
    _spoil("signals_of_children", "the ends of children", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"),
    _spoil("signals_handlers", "a handler of a signal", "signal.signal(signal.SIGUSR1, lambda *_: None)"),
    _spoil(
        "signals_alarm", "an alarm", "signal.signal(signal.SIGALRM, lambda *_: None); signal.alarm(10_000)"
    ),
    _spoil("signals_alarm", "a timer", "signal.setitimer(signal.ITIMER_VIRTUAL, 1e6)"),
    _spoil(
        "faulthandler_state",
        "faulthandler",
        "import faulthandler; faulthandler.enable(file=2)",
    ),
    _spoil("tracemalloc_state", "tracemalloc", "import tracemalloc; tracemalloc.start(7)"),
    _spoil("environment_of_the_process", "an environment variable", "os.environ['LEFT'] = '1'", ci=True),
    _spoil("home_folder", "a variable that is missing", "del os.environ['HOME']"),
    _spoil("environment_in_c", "a variable that only C code sees", "os.putenv('LEFT', '1')"),
    _spoil(
        "environment_of_the_type",
        "the class of os.environ",
        "os.environ.__class__ = type('Recording', (type(os.environ),), {})",
    ),
    _spoil("process_folder", "the working folder", "os.chdir('/')", ci=True),
    _spoil("process_umask", "the umask", "os.umask(0o077)", ci=True),
    _spoil("recursion_limit", "the recursion limit", "sys.setrecursionlimit(5000)", ci=True),
    _spoil("interpreter_names", "the switch interval", "sys.setswitchinterval(0.5)"),
    _spoil("collector_state", "the collector", "import gc; gc.disable()", ci=True),
    _spoil("collector_state", "the thresholds of the collector", "import gc; gc.set_threshold(5, 5, 5)"),
    _spoil(
        "warnings_filters",
        "a filter of warnings",
        "import warnings; warnings.simplefilter('ignore')",
        ci=True,
    ),
    _spoil("interpreter_path", "an entry of sys.path", "sys.path.append('/left')", ci=True),
    _spoil(
        "interpreter_path",
        "a finder of modules",
        "sys.meta_path.append(type('Left', (), {'find_spec': staticmethod(lambda *_: None)}))",
    ),
    _spoil("imports_listed", "a module", "import types; sys.modules['roost'] = types.ModuleType('roost')"),
    _spoil("imports_specs", "the spec of a module", "import json; json.__spec__ = None"),
    _spoil("hooks_of_builtins", "a name in builtins", "import builtins; builtins.left = 1"),
    _spoil("interpreter_arguments", "an argument", "sys.argv.append('left')"),
    _spoil("exit_handlers_order", "a handler at the end", "import atexit; atexit.register(int)", ci=True),
    _spoil("hooks_of_forks", "a handler of forks", "os.register_at_fork(after_in_child=lambda: os._exit(9))"),
    _spoil(
        "process_limits",
        "a limit",
        "import resource; resource.setrlimit(resource.RLIMIT_CORE, (1000, 1000))",
        ci=True,
    ),
    _spoil(
        "descriptors_next_number",
        "the limit of descriptors",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (900, 900))",
    ),
    _spoil("process_niceness", "the niceness", "os.nice(1)", ci=True),
    _spoil("process_affinity", "the processors", "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"),
    _spoil(
        "process_oom_score",
        "the score for lack of memory",
        "open('/proc/self/oom_score_adj', 'w').write('600')",
    ),
    _spoil("process_name", "the name of the process", "open('/proc/self/comm', 'w').write('left')"),
    _spoil(
        "process_prctl_states", "the slack of timers", "import ctypes; ctypes.CDLL(None).prctl(29, 123456)"
    ),
    _spoil("logging_state", "a level of logging", "import logging; logging.root.setLevel('DEBUG')", ci=True),
    _spoil(
        "logging_state",
        "a handler of logging",
        "import logging; logging.root.addHandler(logging.NullHandler())",
    ),
    _spoil("decimal_context", "the context of decimal", "import decimal; decimal.getcontext().prec = 5"),
    _spoil(
        "floating_point_environment",
        "the rounding of numbers",
        "import ctypes, ctypes.util; ctypes.CDLL(ctypes.util.find_library('m')).fesetround(0x400)",
    ),
    _spoil("numpy_settings", "the errors of numpy", "import numpy; numpy.seterr(all='ignore')"),
    _spoil("hooks_of_tracing", "a profiler", "import threading; threading.setprofile(lambda *_: None)"),
    _spoil("http_on_loopback", "the timeout of sockets", "import socket; socket.setdefaulttimeout(77)"),
    _spoil(
        "tempfile_names", "the folder of temporary files", "import tempfile; tempfile.tempdir = '/var/tmp'"
    ),
    _spoil(
        "context_variables", "a context variable", "import contextvars; contextvars.ContextVar('left').set(1)"
    ),
    _spoil("hooks_of_exceptions", "the hook for errors", "sys.unraisablehook = lambda error: None", ci=True),
    _spoil(
        "threads_main_native_id",
        "the number of the main thread",
        "import threading; threading.main_thread()._native_id = os.getppid()",
    ),
    _spoil(
        "interpreter_flags", "the flag for bytecode", "sys.dont_write_bytecode = not sys.dont_write_bytecode"
    ),
    _spoil("curses_terminal", "the size of the terminal", "os.environ['COLUMNS'] = '7'"),
    _spoil(
        "subclasses_and_caches",
        "a base of all sequences",
        "import abc, collections.abc as c; c.Sized.__subclasshook__ = classmethod(lambda *_: True)",
    ),
)

_HOOK = """

_plain_take_over_process = KernelChild.take_over_process


def _take_over_process(self):
    _plain_take_over_process(self)
    if code := os.environ.pop({variable!r}, None):
        exec(code, {{"os": os, "signal": signal, "sys": sys}})


KernelChild.take_over_process = _take_over_process
"""


def write_spoilt_script(folder: Path) -> Path:
    """Copy the zygote's files to the new folder `folder`, add the hook, and return the path of its script."""
    shutil.copytree(SCRIPT.parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "kernel.py").open("a") as file:
        file.write(_HOOK.format(variable=VARIABLE))
    return folder / SCRIPT.name
