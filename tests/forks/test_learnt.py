"""The packages that a zygote imports because kernels imported them. Each check runs in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

ASK = """
import json, os, sys
from roost.launchers.zygote.learnt import Unfit, import_learnt, report_imports
site, elsewhere, *names = sys.argv[1:]
sys.path += [site, elsewhere]
announced = []
try:
    read_by, reads = import_learnt(names, [site], lambda *unfit: announced.append(unfit))
    answer = {"read_by": read_by, "reads": reads, "loaded": [name for name in names if name in sys.modules]}
except Unfit as unfit:
    answer = {"unfit": unfit.args}
answer["announced"] = [name for name, _ in announced]
if not "unfit" in answer:
    known = frozenset(sys.modules)
    for number, code in enumerate(["", "import used", "from package.part import x", "import own, theirs, _private"]):
        try:
            exec(code)
        except ImportError:
            pass
        report_imports(f"{site}/report", "PYTHON", known, [site])
        with open(f"{site}/report") as file:
            answer[f"report {number}"] = json.load(file)["names"]
        os.unlink(f"{site}/report")
print("ANSWER", json.dumps(answer), flush=True)
os._exit(0)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "site-packages").mkdir()
    return tmp_path / "site-packages"


def ask(site: Path, *names: str) -> dict[str, Any]:
    command = [sys.executable, "-c", ASK, site, site.parent / "elsewhere", *names]
    env = {**os.environ, "COLOUR": "red", "JPY_SESSION_NAME": "a"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(60), check=False, env=env)
    assert run.returncode == 0, run.stderr
    before, _, answer = run.stdout.rpartition("ANSWER ")
    assert before == run.stderr == ""
    return dict(json.loads(answer))


UNFIT = {
    "it starts a thread": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
    "it starts a process": "import subprocess; subprocess.Popen(['sleep', '3']).returncode = 0",
    "it opens a file, a connection or a device": "import os; os.open('/dev/null', os.O_RDONLY)",
    "it handles signals": "import signal; signal.signal(signal.SIGUSR1, lambda *_: None)",
    "it changes the environment": "import os; os.environ['COLOUR'] = 'green'",
    "it changes sys.path": "import sys; sys.path.append('/mine')",
    "it changes the working folder or the umask": "import os; os.chdir('/')\nos.umask(0o11)",
    "it changes the locale": "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8')",
    "it replaces a hook or a stream of Python": "import sys; sys.excepthook = print",
    "it changes a limit of Python": "import sys; sys.setrecursionlimit(3210)",
    "it changes the root logger": "import logging; logging.basicConfig()",
    "it changes which warnings are shown": "import warnings; warnings.simplefilter('ignore', DeprecationWarning)",
    "all kernels would draw the same random numbers from it": "import random\n"
    "class Own(random.Random): pass\nown = Own()",
    "it prints something": "import os; os.write(2, b'hello')",
    "its import raises SystemExit": "raise SystemExit",
    "its import raises ZeroDivisionError": "1 / 0",
}


@pytest.mark.parametrize("reason", UNFIT)
def test_a_package_that_kernels_would_notice_is_refused(site: Path, reason: str) -> None:
    (site / "plain.py").touch()
    (site / "unfit.py").write_text(UNFIT[reason])
    answer = ask(site, "plain", "unfit", "plain")
    assert answer == {"unfit": ["unfit", reason], "announced": ["plain", "unfit"]}


def test_a_package_may_filter_its_own_warnings(site: Path) -> None:
    own = "class Own(Warning): pass\nwarnings.simplefilter('ignore', Own)\nwarnings.filterwarnings('ignore', 'own: ')"
    (site / "warns.py").write_text(f"import warnings\n{own}")
    assert ask(site, "warns")["loaded"] == ["warns"]


def test_a_copy_that_a_package_forks_does_not_go_on(site: Path) -> None:
    (site / "forks.py").write_text("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)")
    assert ask(site, "forks")["loaded"] == ["forks"]


def test_an_import_that_ends_the_process_was_announced(site: Path) -> None:
    (site / "crash.py").write_text("import os\nos.kill(os.getpid(), 9)")
    code = ASK.replace("announced.append(unfit)", "print(*unfit, flush=True)")
    command = [sys.executable, "-c", code, site, site.parent / "elsewhere", "crash"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(60), check=False)
    assert (run.returncode, run.stdout) == (
        -9,
        "crash its import ends the process, or takes longer than 20 s\n",
    )


def test_packages_that_no_check_finds_are_left_out(site: Path) -> None:
    (site / "torch.py").touch()
    (site / "plots.py").write_text("import torch")
    assert ask(site, "torch")["loaded"] == []
    assert ask(site, "torch", "plots")["unfit"] == [
        "plots",
        "it imports torch: all kernels would draw the same random numbers from it",
    ]


def test_only_installed_packages_are_imported(site: Path) -> None:
    (site / "plain.py").touch()
    (site / "namespace").mkdir()
    (site.parent / "elsewhere" / "own.py").touch()
    (site / "linked.py").symlink_to(site.parent / "elsewhere" / "own.py")
    answer = ask(site, "own", "missing", "wave", "namespace", "linked", "plain", "..")
    assert answer["announced"] == answer["loaded"] == ["plain"]


def test_the_variables_that_a_package_reads_are_known(site: Path) -> None:
    (site / "plain.py").touch()
    (site / "reads.py").write_text("import os; os.environ['COLOUR']; os.environ.get('MISSING')")
    answer = ask(site, "plain", "reads")
    assert answer["read_by"] == {"plain": [], "reads": ["COLOUR", "MISSING"]}
    assert answer["reads"] == {"COLOUR": "red", "MISSING": None}


def test_a_kernel_reports_the_installed_packages_that_it_has_imported(site: Path) -> None:
    """A package that the zygote has preloaded is reported only if the kernel itself has imported it too."""
    for name in ("unused", "used", "theirs", "_private"):
        (site / f"{name}.py").touch()
    (site / "package").mkdir()
    (site / "package" / "__init__.py").write_text("from . import part")
    (site / "package" / "part.py").write_text("x = 1")
    (site.parent / "elsewhere" / "own.py").write_text("import wave")
    answer = ask(site, "unused", "used", "package")
    assert answer["report 0"] == []
    assert answer["report 1"] == ["used"]
    assert answer["report 2"] == ["package", "used"]
    assert answer["report 3"] == ["package", "theirs", "used"]
