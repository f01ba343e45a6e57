"""The Python versions that can make preloaded objects immortal. Each check runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import roost.launchers.zygote
from roost.testing.deadlines import allow_s

ASK = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("immortal", sys.argv[1])
immortal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(immortal)
reason = immortal.why_not()
if not reason:
    kept = [object()]
    immortal.make_immortal()
    immortal._use_objects()
    assert sys.getrefcount(kept[0]) == sys.getrefcount(sys.path) == sys.getrefcount(None)
print(reason)
"""


def ask(change: str = "") -> str:
    file = Path(roost.launchers.zygote.__file__).with_name("immortal.py")
    command = [sys.executable, "-c", change + ASK, str(file)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=allow_s(60), check=True
    ).stdout.strip()


def test_a_proven_version_passes_its_own_test_and_others_are_left_alone() -> None:
    is_proven = sys.version_info[:2] in ((3, 12), (3, 13), (3, 14))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert ask() == ("" if is_proven else f"not proven right for Python {version}")


def test_a_build_that_counts_in_another_way_is_noticed() -> None:
    """A Python before 3.12 claims to be 3.12 here. A later one claims to be a build without the GIL."""
    if sys.version_info >= (3, 12):
        change = "import sysconfig; sysconfig.get_config_var = lambda name: 1\n"
    else:
        change = "import sys; sys.version_info = (3, 12)\n"
    assert ask(change) == "this build of Python counts references in another way"
