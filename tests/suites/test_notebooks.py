"""Notebooks that only name a kernelspec: what their code finds in pods, containers, on hosts and in clusters."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from kit import ROOT
from kit.jupyter.notebook_runs import run_nbclient
from roost.testing.deadlines import allow_s

EXAMPLE = ROOT / "docs" / "examples" / "dask_map.ipynb"
ONE_A100: Mapping[str, Any] = {"gpus": 1, "gpu_models": ["A100"]}
HALF_AN_A100: Mapping[str, Any] = {"gpus": 0.5, "resources": {"A100": 0.5}}
"""As a Dask cluster has GPUs of a model."""
NAMES = """
print([name for name in os.environ if name.startswith(("JPY_", "JUPYTER_"))])
"""
ONLY_ONE = r"\['JPY_PARENT_PID'\]\n"
"""The only variable of Jupyter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell, what its kernel asks for, and a pattern of what the cell prints. `{NAME}` is the test's variable."""

    code: str
    prints: str
    config: Mapping[str, Any] = field(default_factory=dict)


CELLS: Mapping[str, Cell] = {
    "ray": Cell(
        code="""
import os, ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(namespace=os.environ["RAY_NAMESPACE"], log_to_driver=False)
group = ray.util.get_placement_group(os.environ["ROOST_PLACEMENT_GROUP"])

@ray.remote(num_cpus=0, num_gpus=0.5, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
def where():
    return ray.util.get_node_ip_address(), os.environ["CUDA_VISIBLE_DEVICES"]

print(*ray.get(where.remote()), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["RAY_ADDRESS"])
ray.shutdown()
""",
        prints=r"\S+\.3 (?P<own>[0-3]) (?P=own) {RAY_ADDRESS}\n",
        config={"gpus": 0.5, "gpu_models": ["A100"]},
    ),
    "dask": Cell(
        code="""
import os
from distributed import Client

with Client() as client:
    squares = client.gather(client.map(lambda x: x * x, range(100)))
    print(sum(squares), sum(client.nthreads().values()), client.scheduler.address)
print(os.environ["CUDA_VISIBLE_DEVICES"])
""",
        prints=r"328350 8 {DASK_SCHEDULER_ADDRESS}\n[0-3]\n",
        config=HALF_AN_A100,
    ),
    "docker": Cell(
        code="""
import os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(os.getuid(), status["CapBnd"], status["NoNewPrivs"], os.path.exists("/var/run/docker.sock"))
"""
        + NAMES,
        prints=rf"1000 0000000000000000 1 False\n{ONLY_ONE}",
    ),
    "kubernetes": Cell(
        code="""
import os
print(os.environ["NVIDIA_VISIBLE_DEVICES"], os.getuid(), os.environ["HOSTNAME"])
"""
        + NAMES,
        prints=rf"GPU-\S+ 12345 roost-\S+\n{ONLY_ONE}",
        config=ONE_A100,
    ),
    "yarn": Cell(
        code="""
import os
tokens = [name for name in os.environ if "TOKEN" in name]
print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CONTAINER_ID"], os.environ["NM_HOST"], tokens)
"""
        + NAMES,
        prints=rf"[0-3] container_\S+ \S+\.13 \[\]\n{ONLY_ONE}",
        config=ONE_A100,
    ),
    "ssh": Cell(
        code="""
import os, socket
print(socket.gethostname(), os.environ["CUDA_VISIBLE_DEVICES"], "SSH_CONNECTION" in os.environ)
""",
        prints=r"n2 0 False\n",
        config=ONE_A100,
    ),
}


@pytest.fixture(autouse=True)
def find_kernelspecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nbclient find the kernelspecs that `specs_of` makes."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))


@pytest.mark.backends(
    "ray",
    "dask",
    "dask_tls",
    "docker",
    "podman",
    "kubernetes",
    "yarn",
    "ssh",
    why="their surroundings differ",
)
def test_what_a_cell_finds(backend: str, specs_of: Callable[..., object]) -> None:
    cell = CELLS[backend]
    specs_of(config=cell.config)
    prints = re.sub(r"\{(\w+)\}", lambda name: re.escape(os.environ[name[1]]), cell.prints)
    printed = run_nbclient(cell.code)
    assert re.match(prints, printed), printed


@pytest.mark.backends("ray", why="only Ray has namespaces")
def test_a_cell_joins_the_namespace_of_its_kernelspec(specs_of: Callable[..., object]) -> None:
    specs_of(config={"options": {"namespace": "team"}})
    code = """
import os, ray

ray.init(namespace=os.environ["RAY_NAMESPACE"], log_to_driver=False)
print(ray.get_runtime_context().namespace)
ray.shutdown()
"""
    assert run_nbclient(code).strip() == "team"


@pytest.mark.backends("dask", why="uses Dask inside a kernel")
def test_the_example_of_dask(specs_of: Callable[..., object]) -> None:
    specs_of(config=HALF_AN_A100)
    notebook = nbformat.read(EXAMPLE, as_version=4)
    NotebookClient(notebook, timeout=int(allow_s(100)), kernel_name="roosted").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.name == "stdout")
    assert printed.startswith(f"3 workers with 8 threads at {os.environ['DASK_SCHEDULER_ADDRESS']}\n")
    assert "CUDA_VISIBLE_DEVICES of this kernel: " in printed
    assert printed.count("tasks ran on") == 3


OF_OTHER_GATEWAYS = {
    "KERNEL_CPUS": "250m",
    "KERNEL_UID": "23456",
    "KERNEL_GID": "100",
    "KERNEL_REMOTE_HOST": "n2",
    "KERNEL_VOLUMES": '[{"name": "scratch", "emptyDir": {}}]',
    "KERNEL_VOLUME_MOUNTS": "[{name: scratch, mountPath: /scratch, subPath: mine}]",
}
WITH_THEM = """
import os
print(os.getuid(), os.getgid(), os.path.ismount("/scratch"))
print(open("/scratch/file", "w").write("four"), open(os.path.expanduser("~/file"), "w").write("four"))
"""


@pytest.mark.backends("kubernetes", why="variables of pods")
def test_variables_as_for_enterprise_gateway(
    specs_of: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs_of(config=ONE_A100)
    for name, value in OF_OTHER_GATEWAYS.items():
        monkeypatch.setenv(name, value)
    assert run_nbclient(WITH_THEM).splitlines()[:2] == ["23456 100 True", "4 4"]
