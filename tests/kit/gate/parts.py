"""Which parts run: those of every landing, those that the change touches, and one by turn."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping

ALWAYS = ("lint", "docs", "run", "test", "machine")
"""The parts of every landing: targets of the Makefile, as all parts."""
MOST_OWN = 2
"""At most how many parts run because the change touches them."""
_HOURS = 4
"""A change is what lies after the newest commit that is this much older than its head."""
_PER_NODE, _PER_KERNEL = "scheduler/backends/agent_per_node/", "scheduler/backends/agent_per_kernel/"
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "forks": ("launchers/zygote/", "launchers/agent/warm/", "tests/forks/", "tests/kit/programs/"),
    "servers": ("provisioners/", "tests/servers/"),
    "browser": ("provisioners/server_extension/", "tests/browser/"),
    "ray": (_PER_NODE,),
    "dask": (_PER_NODE,),
    "docker": (_PER_KERNEL, "tests/kit/clusters/docker_engine/"),
    "kubernetes": (_PER_KERNEL, "tests/kit/clusters/kubelets/"),
    "yarn": ("tests/kit/clusters/hadoop_nodes/",),
    "ssh": ("launchers/agent/on_host.py", "tests/kit/clusters/ssh_hosts/"),
}
"""The parts that take turns, and what touches them beside the folders that have their names."""
_NAMED = ("scheduler/backends/", "tests/clusters/", "tests/kit/clusters/")
PRODUCT = ("placement", "scheduler", "launchers", "provisioners")


def git(*arguments: str) -> str:
    """Return what git prints. Raises `subprocess.CalledProcessError`."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def find_base() -> str:
    """Return the commit before the change: BASE, or else the newest one that is four hours older than HEAD."""
    if base := os.environ.get("BASE"):
        return git("rev-parse", base)
    before = int(git("log", "-1", "--format=%ct")) - _HOURS * 3600
    return git("rev-list", "-1", f"--before={before}", "HEAD") or git(
        "rev-list", "-1", "--max-parents=0", "HEAD"
    )


def list_changed(base: str) -> list[str]:
    """Return the files that the change adds, edits, moves or deletes."""
    return git("diff", "--name-only", "--no-renames", base, "HEAD").splitlines()


def find_turn() -> str:
    """Return the part whose turn it is. It depends on the product alone: no new message or test changes it."""
    trees = git("rev-parse", *(f"HEAD:{folder}" for folder in PRODUCT))
    digest = hashlib.sha1(f"{trees}\n".encode()).hexdigest()
    return list(FOLDERS)[int(digest[:8], 16) % len(FOLDERS)]


def find_own(changed: Iterable[str]) -> list[str]:
    """Return the parts that the change touches with most files, at most two."""
    touched = Counter(
        part
        for path in changed
        for part, folders in FOLDERS.items()
        if path.startswith((*folders, *(f"{parent}{part}/" for parent in _NAMED)))
    )
    return [part for part, _ in touched.most_common(MOST_OWN)]
