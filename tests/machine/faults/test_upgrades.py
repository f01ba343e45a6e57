"""A restarted kernel gets the code that is installed now, even if a zygote has imported older code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import roost
from kit.jupyter.notebook import Notebook

pytestmark = [pytest.mark.usefixtures("roost_by_default")]


def wheel(folder: Path, version: str) -> Path:
    """Write a wheel of the package `tinypkg`, whose module has its version."""
    path = folder / f"tinypkg-{version}-py3-none-any.whl"
    info = f"tinypkg-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinypkg/__init__.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinypkg\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def pip_install(target: Path, package: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-index",
            "--upgrade",
            "--target",
            target,
            package,
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )


async def warm(**environment: str) -> None:
    """Wait until the agent can fork kernels with this environment."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    await roost.connect("local").warm(argv, {**os.environ, **environment})


async def how(notebook: Notebook) -> str:
    return (await roost.connect("local").kernel(notebook.manager.kernel_id)).how


async def test_pip_install_upgrade_of_a_preloaded_package(
    settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    pip_install(site, wheel(tmp_path, "1.0"))
    config = tmp_path / "config"
    config.mkdir()
    (config / "jupyter_roost_config.py").write_text("c.RoostLocalBackend.preload = ['tinypkg']\n")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(config))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    await warm()
    notebook = Notebook()
    await notebook.open()
    assert await how(notebook) == "forked"
    assert await notebook.value("'tinypkg' in __import__('sys').modules") == "True", "it was not preloaded"
    await notebook.run("import tinypkg")
    assert await notebook.value("tinypkg.VERSION") == "'1.0'"
    pip_install(site, wheel(tmp_path, "2.0"))
    await notebook.restart()
    await notebook.run("import tinypkg")
    assert await notebook.value("tinypkg.VERSION") == "'2.0'"
    await warm()
    await notebook.restart()
    assert await how(notebook) == "forked", "the zygote was not replaced by one of the new version"
    await notebook.run("import tinypkg")
    assert await notebook.value("tinypkg.VERSION") == "'2.0'"
    await notebook.close()


async def test_an_edited_startup_file_and_configuration(
    settled_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "ipython" / "profile_default"
    (profile / "startup").mkdir(parents=True)
    script = profile / "startup" / "00-mine.py"
    script.write_text("mine = 1\n")
    monkeypatch.setenv("IPYTHONDIR", str(profile.parent))
    await warm()
    notebook = Notebook()
    await notebook.open()
    assert await how(notebook) == "forked"
    assert await notebook.value("mine") == "1"
    script.write_text("mine = 2\n")
    (profile / "ipython_kernel_config.py").write_text(
        "c.InteractiveShellApp.exec_lines = ['configured = 3']\n"
    )
    await notebook.restart()
    assert await notebook.value("(mine, configured)") == "(2, 3)"
    script.unlink()
    await notebook.restart()
    assert (await notebook.run("mine"))["ename"] == "NameError"
    await notebook.close()


async def test_kernels_do_not_see_each_others_changes(settled_runtime_dir: Path) -> None:
    await warm()
    first, second = Notebook(), Notebook()
    await asyncio.gather(first.open(), second.open())
    await first.run("import sys, os, json; json.mine = 1; os.environ['MINE'] = '1'; sys.path.append('/mine')")
    assert await second.value("hasattr(__import__('json'), 'mine')") == "False"
    assert await second.value("__import__('os').environ.get('MINE')") == "None"
    draws = [await notebook.value("__import__('random').random()") for notebook in (first, second)]
    assert draws[0] != draws[1]
    await first.close()
    await second.close()
