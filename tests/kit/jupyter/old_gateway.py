"""Enterprise Gateway with its integration tests, unchanged, in an environment of its own outside this repository.

Its integration tests talk to a server as a notebook does. They need no more than a server's address.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from kit.jupyter.downloads import GATEWAY, cache, download_gateway, keep, pip
from roost.testing.deadlines import allow_s

_NEEDS = ("ipykernel>=6.29,<7", "pytest<8.1.0", "websocket-client")
"""The requirements of Enterprise Gateway's own tests, and of its client."""
_FOLDER = "server_" + GATEWAY.replace("==", "-")
_TIMEOUT_S = 400.0
_VARIABLES = ("PATH", "HOME", "LANG")
CLASSES = (
    "test_python_kernel.py::TestPythonKernelLocal",
    "test_python_kernel.py::TestPythonKernelDistributed",
    "test_authorization.py::TestAuthorization",
)
"""The integration tests that need no cluster."""
SPARK_CLASSES = (
    "test_python_kernel.py::TestPythonKernelClient",
    "test_python_kernel.py::TestPythonKernelCluster",
)
"""The integration tests of Python kernels with Spark on YARN."""
SPARK_KERNELSPECS = ("spark_python_yarn_client", "spark_python_yarn_cluster")


def why_not() -> str | None:
    """Install Enterprise Gateway, if it is not in the cache. Return why it is missing, in one sentence, or None."""
    return keep(_FOLDER, _install)


def python() -> str:
    """Return the Python of Enterprise Gateway's environment."""
    return str(cache() / _FOLDER / "environment" / "bin" / "python")


def list_kernelspecs(folder: Path) -> list[Path]:
    """Write the kernelspecs of the tests below a folder, as an installation has them. Return their folders."""
    source = cache() / _FOLDER / "source"
    local = folder / "python3"
    distributed = folder / "python_distributed"
    authorized = folder / "authorization_test"
    shutil.copytree(source / "enterprise_gateway/itests/kernels/authorization_test", authorized)
    shutil.copytree(authorized, local)
    document = json.loads((local / "kernel.json").read_text())
    del document["metadata"]["process_proxy"]["config"]
    (local / "kernel.json").write_text(json.dumps(document))
    shutil.copytree(source / "etc/kernelspecs/python_distributed", distributed)
    shutil.copytree(source / "etc/kernel-launchers/python/scripts", distributed / "scripts")
    file = distributed / "kernel.json"
    file.write_text(file.read_text().replace("/usr/local/share/jupyter/kernels", str(folder)))
    return [local, distributed, authorized]


def list_spark_kernelspecs() -> list[Path]:
    """Return the folders of `SPARK_KERNELSPECS`, as Enterprise Gateway ships them."""
    return [cache() / _FOLDER / "source/etc/kernelspecs" / name for name in SPARK_KERNELSPECS]


def install_spark_kernelspecs(folder: Path) -> None:
    """Write `SPARK_KERNELSPECS` with their launchers below a folder, as Enterprise Gateway is installed.

    The launcher reads an attribute that Spark 3.3 has removed, without which it makes no session. Here it reads none.
    """
    for shipped in list_spark_kernelspecs():
        installed = folder / shipped.name
        shutil.copytree(shipped, installed)
        scripts = cache() / _FOLDER / "source/etc/kernel-launchers/python/scripts"
        shutil.copytree(scripts, installed / "scripts")
        launcher = installed / "scripts" / "launch_ipykernel.py"
        launcher.write_text(launcher.read_text().replace("spark._wrapped", "spark"))
        file = installed / "kernel.json"
        file.write_text(file.read_text().replace("/usr/local/share/jupyter/kernels", str(folder)))


def run_tests(
    port: int, report: Path, classes: Sequence[str] = CLASSES, **variables: str
) -> dict[str, float]:
    """Run integration tests against a server. Return the seconds of each. `report` is a file for JUnit's XML.

    Raises AssertionError with pytest's output if a test fails.
    """
    tests = [f"enterprise_gateway/itests/{name}" for name in classes]
    words = [python(), "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    words += ["-o", "filterwarnings=default", f"--junitxml={report}", *tests]
    env = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    env |= {"GATEWAY_HOST": f"127.0.0.1:{port}", "ITEST_HOSTNAME_PREFIX": ".", **variables}
    done = subprocess.run(
        words,
        cwd=cache() / _FOLDER / "source",
        env=env,
        capture_output=True,
        text=True,
        timeout=allow_s(_TIMEOUT_S),
    )
    assert done.returncode == 0, done.stdout
    cases = ElementTree.parse(report).iter("testcase")
    return {f"{case.attrib['classname']}.{case.attrib['name']}": float(case.attrib["time"]) for case in cases}


def _install(folder: Path) -> None:
    """Make the environment. Raises `OSError` and `SubprocessError`."""
    folder.mkdir()
    archives = folder / "archives"
    source = download_gateway(archives, ("",))
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True, timeout=allow_s(100))
    python = str(folder / "environment" / "bin" / "python")
    pip("install", str(source), *_NEEDS, python=python)
    shutil.move(source, folder / "source")
    shutil.rmtree(archives)
