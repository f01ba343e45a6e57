"""`roost bench` with real kernels: short runs, their files, and a run that is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from roost.bench.kernel import BenchKernel, NoAnswer
from roost.bench.report import Report
from roost.bench.sides import read_sides, world
from roost.bench.world import write_kernelspec
from roost.testing.deadlines import allow_s, until_blocking

RUN_S = 300
"""The limit of a run. Alone on the machine it takes up to 30 s, beside other tests four times as long."""
pytestmark = [pytest.mark.backends("local", why="each run starts a scheduler of its own")]
SCRIPTS = Path(__file__).parents[2] / "benchmarks"
SCALE = (sys.executable, str(SCRIPTS / "scale.py"))
BENCH = (str(Path(sys.executable).with_name("roost")), "bench")
PEER = """
from jupyter_client.provisioning import LocalProvisioner

class PeerProvisioner(LocalProvisioner):
    async def pre_launch(self, **options):
        assert "stdout" not in options
        self.ports_cached = False
        self.parent.cleanup_connection_file()
        return await super().pre_launch(**options)
"""
"""A provisioner that accepts no output file for its kernels, and gives them new ports at each start."""


def bench(tmp_path: Path, *options: str, **environment: str) -> dict[str, Any]:
    """Run a benchmark and return its JSON. The file `said` has the text that it prints.

    The working folder contains a folder `roost`, as if the user had cloned the repository there.
    """
    (tmp_path / "parent" / "roost").mkdir(parents=True, exist_ok=True)
    (tmp_path / "parent" / "roost" / "__init__.py").touch()
    command = [
        *BENCH,
        *options,
        "--json",
        str(tmp_path / "result.json"),
    ]
    with (tmp_path / "said").open("w") as said:
        done = subprocess.run(
            command,
            cwd=tmp_path / "parent",
            stdout=said,
            stderr=subprocess.STDOUT,
            timeout=allow_s(RUN_S),
            env={**os.environ, **environment},
        )
    assert done.returncode == 0, (tmp_path / "said").read_text()
    found: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
    return found


@pytest.mark.long
def test_starts_are_compared_with_plain_kernels(tmp_path: Path) -> None:
    found = bench(tmp_path, "start", "--rounds", "1", "--at-once", "2")
    stages = {"start", "again", "interrupt", "restart", "stop", "2 at once", "start by roost.start_kernel"}
    assert {name.split(":")[0] for name in found["ratios"]} == stages
    figures = found["figures"]
    assert figures["stage launched/roost"]["n"] == 1
    assert figures["first start/roost"]["median"] > figures["first start, stage launched/roost"]["median"]
    assert "first start/plain" not in figures
    assert len(found["conditions"]) == 2


@pytest.mark.long
def test_another_provisioner_is_compared_in_its_own_process(tmp_path: Path) -> None:
    (tmp_path / "peer.py").write_text(PEER)
    info = tmp_path / "peer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peer\nVersion: 1.0\n")
    provisioners = "[jupyter_client.kernel_provisioners]\npeer = peer:PeerProvisioner\n"
    (info / "entry_points.txt").write_text(provisioners)
    write_kernelspec(tmp_path / "kernels" / "peer", "peer")
    environment = {"PYTHONPATH": str(tmp_path), "JUPYTER_PATH": str(tmp_path)}
    found = bench(tmp_path, "start", "--rounds", "1", "--at-once", "2", "--baseline", "peer", **environment)
    figures = found["figures"]
    measured = ("start", "again", "interrupt", "restart", "stop", "2 at once")
    assert {stage: figures[f"{stage}/peer"]["n"] for stage in measured} == dict.fromkeys(measured, 1)
    assert not found["failures"]


@pytest.mark.long
async def test_the_memory_of_everything_that_runs_for_some_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import all_processes

    report = Report("memory")
    sides = read_sides({"backend": "local"}, ["plain"])
    with world(sides):
        await all_processes.measure(report, sides, [all_processes.Case(users=2, kernels=1)], 1.0)
    figures = {name: report.figure(name).median for name in report.samples}
    case = "2 users with 1 kernel"
    parts = [figures[f"{part}, {case}/roost"] for part in ("service", "agent", "zygote", "kernels")]
    assert sum(parts) == pytest.approx(figures[f"all in, {case}/roost"])
    assert min(parts) > 1
    assert figures[f"all in, {case}/roost"] > figures[f"all in, {case}/plain"] > 10
    left = [process for process in psutil.process_iter() if "all_processes" in " ".join(_command(process))]
    assert left == []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_node_is_filled_until_a_limit(tmp_path: Path) -> None:
    found = bench(
        tmp_path, "density", "--quick", "--baseline", "none", "--kernels", "3", "--packages", "colorsys"
    )
    (node,) = found["capacity"].values()
    assert (node["started"], node["limit"]) == (3, "count")
    assert list(node["holds"]) == ["1+1", "a completion", "import colorsys"]
    assert node["holds"]["1+1"] > node["holds"]["a completion"] > 3
    assert 5 < found["figures"]["PSS after 1+1, 3 kernels/roost"]["median"] < 60


@pytest.mark.long
def test_placement_limits_a_node_too(tmp_path: Path) -> None:
    settings = {"RoostLocalBackend": {"cpus": 2}}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps(settings))
    found = bench(
        tmp_path, "density", "--quick", "--baseline", "none", "--cpus", "1", JUPYTER_CONFIG_DIR=str(tmp_path)
    )
    (node,) = found["capacity"].values()
    assert (node["started"], node["limit"]) == (2, "placement")
    assert "needs 1 CPU, 0 free" in node["why"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--gpus", "64"], 1, "64 GPUs"),
        (["--baseline", "roost:fork=never"], 2, "fork = 'never' is not possible: give true or false"),
        (["--packages", "colorsys,no_such"], 2, "--packages no_such: the kernels of roost cannot import it."),
    ],
)
def test_kernels_that_cannot_be_measured_are_one_sentence(options: list[str], code: int, said: str) -> None:
    command = [*BENCH, "density", "--quick", "--baseline", "none", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(110))
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_the_service_is_measured_on_a_simulated_cluster(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [*SCALE, "--nodes", "200", "--kernels", "400", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(RUN_S))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["figures"]["start p99"]["median"] >= found["figures"]["start p50"]["median"] > 0
    assert found["figures"]["CPU per start: service"]["median"] > 0
    assert found["figures"]["idle: service"]["median"] < 50
    assert found["figures"]["read back"]["n"] == 1  # the next service knows all 400
    assert found["notes"][0].startswith("The limit is the ")


@pytest.mark.long
def test_a_cluster_that_cannot_be_simulated_is_one_sentence() -> None:
    for options, says in {
        ("--nodes", "2", "--kernels", "25"): "take at most 24.",
        ("--nodes", "1000"): "file descriptors",
        ("--nodes", "1000000"): "take at most 100000.",
    }.items():
        few = ("/bin/sh", "-c", 'ulimit -n 2000 && exec "$@"', "sh")
        done = subprocess.run([*few, *SCALE, *options], capture_output=True, text=True, timeout=allow_s(60))
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.long
async def test_a_kernel_that_has_ended_is_not_waited_for() -> None:
    sides = read_sides({"backend": "local"}, ["plain"])
    with world(sides):
        for side in sides:
            async with BenchKernel(side) as kernel:
                os.kill(await kernel.evaluate("__import__('os').getpid()"), signal.SIGKILL)
                with pytest.raises(NoAnswer, match=f"a kernel of {side.name} has ended"):
                    await kernel.execute("1+1")


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "signum"),
    [
        ("density --kernels 500", signal.SIGINT),
        ("density --kernels 500", signal.SIGTERM),
        ("density --kernels 500", signal.SIGHUP),
        ("churn --seconds 500", signal.SIGINT),
    ],
)
def test_an_interrupted_run_keeps_its_results_and_leaves_nothing(
    tmp_path: Path, command: str, signum: signal.Signals
) -> None:
    bench = ("env", "--default-signal=HUP", *BENCH)  # the tests may run in nohup
    words = [*bench, *command.split(), "--baseline", "none", "--json", str(tmp_path / "result.json")]
    marked = {**os.environ, "ROOST_BENCH_TEST": str(tmp_path)}
    with (tmp_path / "said").open("w") as said:
        run = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT, env=marked)
        folder = find_folder(tmp_path)
        for _ in range(3):  # an impatient user
            run.send_signal(signum)
            time.sleep(0.3)
        assert run.wait(allow_s(180)) == 130
    output = (tmp_path / "said").read_text()
    assert "nterrupted" in output
    assert "Traceback" not in output
    assert not find_marked(tmp_path)
    assert not folder.exists()


@pytest.mark.long
def test_a_killed_run_leaves_nothing(tmp_path: Path) -> None:
    words = [*BENCH, "density", "--kernels", "500"]
    marked = {**os.environ, "ROOST_BENCH_TEST": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=marked) as run:
        folder = find_folder(tmp_path)
        run.kill()
    until_blocking(lambda: not find_marked(tmp_path), "the processes of the killed run end", 60)
    until_blocking(lambda: not folder.exists(), "the folder of the killed run is removed", 15)


def find_folder(tmp_path: Path) -> Path:
    """Return the private folder of a benchmark's run, once roost's processes and some kernels use it."""

    def find() -> list[psutil.Process]:
        found = find_marked(tmp_path)
        return found if len(found) >= 8 else []  # service, agent, zygote, kernels

    homes = set()
    for process in until_blocking(find, "some kernels run", 60, 0.2):
        with suppress(psutil.Error, OSError):  # a kernel may have ended meanwhile
            homes.add(process.environ().get("ROOST_RUNTIME_DIR", ""))
    (home,) = homes - {"", os.environ["ROOST_RUNTIME_DIR"]}
    return Path(home).parent


def find_marked(tmp_path: Path) -> list[psutil.Process]:
    """Return the live processes of a benchmark's run: the run itself and the processes that it started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ROOST_BENCH_TEST") == str(tmp_path) and process.is_running():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
