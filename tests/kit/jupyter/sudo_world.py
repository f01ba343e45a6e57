"""A world with Debian's sudo, the accounts gateway, ada and eve, and the group notebooks. The machine does not change.

It is a mount namespace: `/etc` and `/usr` are overlays whose upper folders are in memory, `/run` is its own, and all
accounts can read Python and this checkout there, also below a closed home. The network is the machine's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kit.jupyter.downloads import cache
from roost.testing.deadlines import allow_s

ROOT = Path(__file__).resolve().parents[3]
PEOPLE = {"gateway": 12_300, "ada": 12_301, "eve": 12_302}
GROUP = "notebooks"
_PACKAGE = "sudo"
_SET_UP = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 world {base}
mkdir {base}/package; dpkg-deb -x {package} {base}/package
{opened}
for name in etc usr; do
    mkdir -p {base}/$name/upper {base}/$name/work
    mount -t overlay world -o lowerdir=/$name,upperdir={base}/$name/upper,workdir={base}/$name/work /$name
done
mount -t tmpfs -o mode=755 world /run
cp -a {base}/package/usr/. /usr/; cp -a {base}/package/etc/. /etc/; chmod 440 /etc/sudoers
groupadd {group}
for person in {people}; do
    mkdir -p {base}/home
    useradd --uid ${{person#*=}} --create-home --home-dir {base}/home/${{person%=*}} ${{person%=*}}
    install -d -m 700 -o ${{person%=*}} /run/user/${{person#*=}}
done
usermod -aG {group} ada; usermod -aG {group} eve
echo '@{group} - nofile 3000' > /etc/security/limits.d/people.conf
echo ready
exec sleep infinity
"""


def why_not() -> str | None:
    """Download Debian's package, if it is not in the cache. Return why there can be no such world, or None."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("apt-get"):
        return "only root on Debian can make a world with sudo"
    folder = cache() / "sudo"
    if not list(folder.glob("*.deb")):
        folder.mkdir(parents=True, exist_ok=True)
        words = ["apt-get", "download", "--quiet", _PACKAGE]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=allow_s(100))
        if done.returncode:
            return f"Debian's sudo cannot be downloaded: {done.stderr.strip()[-200:]}"
    return None


@dataclass(frozen=True)
class SudoWorld:
    """A world that is there. `base` is its folder, which only its processes see."""

    base: Path
    pid: int

    def home(self, person: str) -> Path:
        return self.base / "home" / person

    def enter(self, person: str, *words: str) -> list[str]:
        """Return the command that runs these words as an account of the world; root for an empty name."""
        into = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--wdns=/"]
        if not person:
            return [*into, *words]
        home, uid = self.home(person), str(PEOPLE[person])
        variables = (f"HOME={home}", f"USER={person}", f"LOGNAME={person}", f"PATH={os.environ['PATH']}")
        account = ("setpriv", "--reuid", uid, "--regid", uid, "--init-groups")
        return [*into, *account, "env", "-i", *variables, *words]

    def run(self, person: str, *words: str, check: bool = True) -> str:
        """Run a command to its end, and return what it prints."""
        command = self.enter(person, *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(60))
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@contextmanager
def make_world(base: Path) -> Iterator[SudoWorld]:
    """Make a world in the empty folder `base`, which all can reach. It ends with the block."""
    (package,) = (cache() / "sudo").glob("*.deb")
    script = _SET_UP.format(
        base=base,
        package=package,
        group=GROUP,
        people=" ".join(f"{name}={uid}" for name, uid in PEOPLE.items()),
        opened="\n".join(_open(base, [Path(sys.base_prefix).resolve(), ROOT])),
    )
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stderr is not None
        ready = holder.stdout.readline()
        assert ready == "ready\n", holder.stderr.read()
        yield SudoWorld(base, holder.pid)
    finally:
        holder.kill()
        holder.communicate()


def _open(base: Path, paths: Sequence[Path]) -> Iterator[str]:
    """Yield the lines of the script that show these folders to all."""
    closed = {
        path: [each for each in reversed(path.parents) if each.stat().st_mode & 0o005 != 0o005]
        for path in paths
    }
    hidden = {path: base / "keep" / str(number) for number, path in enumerate(paths) if closed[path]}
    for path, keep in hidden.items():
        yield f"mkdir -p {keep}; mount --bind {path} {keep}"
    for folder in {closed[path][0] for path in hidden}:
        yield f"mount -t tmpfs -o mode=755 opened {folder}"
    for path, keep in hidden.items():
        yield f"mkdir -p {path}; mount --bind {keep} {path}"
