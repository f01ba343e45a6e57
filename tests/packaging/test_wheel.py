"""Builds and installations: wheel, editable, strict editable and each extra, from a clean copy of the tree."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import roost
from kit.machine.daemons import settle
from roost.testing.deadlines import allow_s

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
TOP = ("launchers", "placement", "provisioners", "scheduler")
ELSEWHERE = {
    str(init.parent.relative_to(ROOT / top)): str(init.parent.relative_to(ROOT))
    for top, name in (("benchmarks", "bench"), ("tests", "testing"))
    for init in (ROOT / top / name).rglob("__init__.py")
}
"""Packages whose folder in the tree has another path than the package in the wheel."""
PACKAGES = {
    "",
    *ELSEWHERE,
    *(str(init.parent.relative_to(ROOT)) for top in TOP for init in (ROOT / top).rglob("__init__.py")),
}
COMMANDS = {
    "": ("nodes", 0),
    "bench": ("bench start --rounds 1", 0),
    "bridge": ("nodes", 0),
    "metrics": ("nodes", 0),
    "dask": ("nodes --backend dask", 1),
    "docker": ("nodes --backend docker", 1),
    "kubernetes": ("nodes --backend kubernetes", 1),
    "ray": ("nodes --backend ray", 1),
    "yarn": ("nodes --backend yarn", 1),
}
"""The command that each extra is for, and its exit status. There is no cluster, which is said after the imports."""
IMPORTS = {"bridge": "roost.launchers.bridge.__main__, Crypto.Cipher.AES", "metrics": "prometheus_client"}
"""What the extras are for that no command shows."""
PROVISIONERS = "jupyter_client.kernel_provisioners"
LAB_EXTENSION = "provisioners/server_extension/labextension"

# setuptools takes every .py beside __init__.py, so a stray module at the root of the tree would be in the wheel.
# Allowed are modules of listed packages, the marker for type checkers, metadata, and two modules at the root.
ALLOWED = re.compile(
    r"roost/(__(init|main)__\.py|py\.typed"
    r"|(bench|launchers|placement|provisioners|scheduler|testing)(/[a-z_]+)*/[a-z_]+\.py"
    r"|scheduler/backends/kubernetes/manifests(/own-pods)?/[a-z-]+\.yaml"
    r"|provisioners/migration/shipped_files\.txt"
    r"|provisioners/server_extension/page/page\.(html|css|js))"
    r"|roost-[^/]+\.data/data/etc/jupyter/(jupyter_server_config\.d/roost|jupyter_console_config)\.json"
    r"|roost-[^/]+\.data/data/etc/jupyter/(jupyter_qtconsole_config\.py|jupyter run_config\.json)"
    r"|roost-[^/]+\.data/data/share/jupyter/labextensions/roost/((package|install)\.json|static/[A-Za-z_]+\.js)"
    r"|roost-[^/]+\.dist-info/(METADATA|RECORD|WHEEL|entry_points\.txt|top_level\.txt|licenses/LICENSE)"
)

# Without `site`, an editable install in the tests' own environment is not found. Its other libraries are found as
# plain files.
SHOW = """
import os, sys, site
site.addsitedir(sys.argv[1])
sys.path += sys.argv[2:]
import roost, roost.scheduler.backends, roost.testing
from importlib.metadata import entry_points, version
print(roost.__version__, version("roost"))
print(os.path.realpath(roost.__file__))
(point,) = entry_points(group="jupyter_client.kernel_provisioners", name="roost")
print(point.load().__name__)
print(*sorted(point.load().name for point in entry_points(group="roost.backends")))
for name in ("roost", "jupyter-roost"):
    print(*{point.value for point in entry_points(group="console_scripts", name=name)})
"""


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, status: int = 0) -> str:
    """Run a command and return its output. With another exit status, raise AssertionError with the output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=allow_s(110),
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy the tracked files and the new files that git does not ignore, and return the copy's folder."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    copy = tmp_path / "tree"
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def install(tree: Path, *how: str) -> Path:
    """Install roost into a prefix beside the tree, outside the tests' environment. Return the site-packages there."""
    prefix = tree.parent / "prefix"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    where = (
        "--prefix",
        prefix,
        "--ignore-installed",
        "--no-deps",
        "--no-build-isolation",
        "--no-warn-script-location",
    )
    run(*pip, "install", *where, *how, cwd=tree)
    (site,) = prefix.glob("lib*/python*/site-packages")
    return site


def check_installed(site: Path) -> Path:
    """Check imports and entry points as a user of the installation sees them. Return the package's folder."""
    libraries = [path for path in sys.path if path.endswith("-packages")]
    shown = run(sys.executable, "-I", "-S", "-c", SHOW, site, *libraries, cwd=Path("/"))
    versions, home, provisioner, backends, roost, jupyter_roost = shown.splitlines()
    assert len(set(versions.split())) == 1
    assert provisioner == "RoostProvisioner"
    assert backends == "dask docker kubernetes local ray ssh yarn"
    assert roost == jupyter_roost == "roost.scheduler.cli.main:main"
    assert sorted(path.name for path in (site.parents[2] / "bin").iterdir()) == ["jupyter-roost", "roost"]
    return Path(home).parent


def test_wheel_holds_the_packages_and_nothing_else(tree: Path) -> None:
    run(
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "wheel",
        ".",
        cwd=tree,
    )
    (wheel,) = (tree / "wheel").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        points = configparser.ConfigParser(delimiters=["="])
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        points.read_string(archive.read(entry_points).decode())
    assert sorted(name for name in names if not ALLOWED.fullmatch(name)) == []
    expected = {f"roost/{path}".replace("//", "/") for path in _modules(tree)}
    modules = {name for name in names if name.endswith(".py") and ".data/data/etc/" not in name}
    assert modules == expected
    assert "roost/py.typed" in names
    manifests = "scheduler/backends/kubernetes/manifests"
    assert {name for name in names if name.endswith(".yaml")} == {
        f"roost/{path.relative_to(ROOT)}" for path in (ROOT / manifests).rglob("*.yaml")
    }
    for path in (
        "jupyter_server_config.d/roost.json",
        "jupyter_console_config.json",
        "jupyter_qtconsole_config.py",
        "jupyter run_config.json",
    ):
        assert any(name.endswith(f".data/data/etc/jupyter/{path}") for name in names)
    assert len([name for name in names if "/server_extension/page/" in name]) == 3
    assert dict(points["console_scripts"]) == {
        "roost": "roost.scheduler.cli.main:main",
        "jupyter-roost": "roost.scheduler.cli.main:main",
    }
    assert dict(points[PROVISIONERS]) == {"roost": "roost.provisioners:RoostProvisioner"}


def _modules(tree: Path) -> set[str]:
    found = {"__init__.py", "__main__.py"}
    for package in PACKAGES - {""}:
        folder = tree / ELSEWHERE.get(package, package)
        found |= {f"{package}/{path.name}" for path in folder.glob("*.py")}
    return found


def test_no_package_is_forgotten() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(settings["tool"]["setuptools"]["packages"])
    assert listed == {f"roost.{package}".replace("/", ".").rstrip(".") for package in PACKAGES}


def test_installed_from_a_wheel(tree: Path) -> None:
    site = install(tree, ".")
    assert check_installed(site) == site / "roost"
    enabled = site.parents[2] / "etc" / "jupyter" / "jupyter_server_config.d" / "roost.json"  # wheels only
    assert json.loads(enabled.read_text()) == {"ServerApp": {"jpserver_extensions": {"roost": True}}}
    shown = site.parents[2] / "share" / "jupyter" / "labextensions" / "roost"
    about = json.loads((shown / "package.json").read_text())
    assert about["version"] == roost.__version__
    assert (shown / about["jupyterlab"]["_build"]["load"]).is_file()
    scripts = [path.name for path in (ROOT / LAB_EXTENSION).glob("static/*.js")]
    assert sorted(path.name for path in shown.glob("static/*.js")) == sorted(scripts)
    assert json.loads((shown / "install.json").read_text())["packageName"] == "roost"


def test_installed_editable(tree: Path) -> None:
    assert check_installed(install(tree, "--editable", ".")) == tree


def test_installed_strictly_editable(tree: Path) -> None:
    home = check_installed(install(tree, "--config-settings", "editable_mode=strict", "--editable", "."))
    assert home in (tree, *tree.joinpath("build").glob("**/roost"))


@pytest.mark.parametrize(
    "extra", [name if name == "bench" else pytest.param(name, marks=pytest.mark.long) for name in COMMANDS]
)
def test_the_command_of_an_extra_runs(extra: str, tree: Path, runtime_dir: Path) -> None:
    """Each extra is alone in its environment."""
    home = tree.parent / "venv"
    run(sys.executable, "-m", "venv", home, cwd=tree)
    pip = (home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", f".[{extra}]" if extra else ".", cwd=tree)
    nowhere = str(tree.parent / "nowhere")
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHON"))},
        "DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:9",
        "DOCKER_HOST": f"unix://{nowhere}",
        "KUBECONFIG": nowhere,
        "HADOOP_CONF_DIR": nowhere,
    }
    words, status = COMMANDS[extra]
    printed = run(home / "bin" / "roost", *words.split(), cwd=tree.parent, env=env, status=status)
    assert "Traceback" not in printed
    assert "pip install" not in printed, "something of the extra is missing"
    if extra in IMPORTS:
        run(home / "bin" / "python", "-c", f"import {IMPORTS[extra]}", cwd=tree.parent)
    settle(runtime_dir)
