"""`roost bench` without kernels: its baselines, the comparison of two results, busy machines, and its limits."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.bench import compare, density, machine, placement, policies, trace_files
from roost.bench.density import Filled, Limits, conclude, count_slots, find_limit
from roost.bench.kernel import BenchKernel, Memory
from roost.bench.report import Report
from roost.bench.sides import Side, read_sides, world
from roost.bench.world import MIB
from roost.placement import Request, Snapshot, get_policy
from roost.scheduler.cli.main import main
from roost.scheduler.errors import ConfigError

CONFIG = {"backend": "local", "cpus": 1}
QUIET = machine.Condition(fault_us=2.0, spin_ms=1.0, spin_spread=0.01, busy=0.0)


def test_each_baseline_is_a_side() -> None:
    roost, plain, peer, other = read_sides(CONFIG, ["plain", "gateway", "roost:fork=false", "none", "plain"])
    assert (roost.is_roost, roost.kernelspec, roost.config) == (True, "roost", CONFIG)
    assert (plain.name, plain.is_roost) == ("plain", False)
    assert (peer.kernelspec, peer.is_roost) == ("gateway", False)
    assert (other.name, other.kernelspec) == ("roost:fork=false", "roost-3")
    assert (other.config, other.options) == ({**CONFIG, "fork": False}, {})


def test_a_baseline_may_have_other_settings_of_the_backend() -> None:
    measured, other = read_sides(CONFIG, ["roost:fork=false,cpu_ceiling=2"], {"preload": ["jedi"]})
    assert (measured.config, measured.options) == (CONFIG, {"preload": ["jedi"]})
    assert (other.config, other.options) == (
        {**CONFIG, "fork": False},
        {"preload": ["jedi"], "cpu_ceiling": 2},
    )


@pytest.mark.parametrize(
    ("baseline", "problem"),
    [
        ("roost", "the measured side itself"),
        ("roost:fork", "must be KEY=VALUE"),
        ("roost:", "must be KEY=VALUE"),
    ],
)
def test_a_wrong_baseline_is_refused(baseline: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_sides(CONFIG, [baseline])


def test_an_unknown_kernelspec_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.bench.world.make_folder", pytest.fail)
    with (
        pytest.raises(ConfigError, match="there is no kernelspec 'no-such'"),
        world(read_sides(CONFIG, ["no-such"])),
    ):
        pass


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("roost.bench.command.find_spec", lambda name: None)
    assert main(["bench", "start"]) == 2
    said = capsys.readouterr().err
    assert "roost bench start cannot run here, because the package ipykernel is missing" in said
    assert "pip install '.[bench]'" in said


def result(tmp_path: Path, name: str, **samples: list[float]) -> str:
    report = Report("start")
    for figure, values in samples.items():
        for value in values:
            report.add(figure, value, "ms")
    file = tmp_path / name
    file.write_text(json.dumps(report.to_dict()))
    return str(file)


def test_a_figure_has_changed_if_it_lies_apart(tmp_path: Path) -> None:
    before = compare.read(result(tmp_path, "a", up=[1, 2, 3, 4], noisy=[1, 5, 9, 13], few=[1, 2], old=[1]))
    after = compare.read(
        result(tmp_path, "b", up=[11, 12, 13, 14], noisy=[2, 6, 10, 14], few=[2, 3], new=[1])
    )
    changes = {change.name: change for change in compare.compare(before, after)}
    assert {name: change.verdict for name, change in changes.items()} == {
        "up": "more",
        "noisy": "",
        "few": "",
    }
    assert changes["up"].ratio == 5


def test_the_command_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [result(tmp_path, "a", up=[1, 2, 3, 4]), result(tmp_path, "b", up=[11, 12, 13, 14])]
    assert main(["bench", "compare", *files]) == 0
    said = capsys.readouterr().out
    assert "1 figure has changed, 0 have not." in said
    assert "5.00" in said
    assert "noise alone" not in said


def test_the_capacities_and_the_settings_of_two_runs_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, count, held in (("a", 20, 2099), ("b", 5, 1964)):
        samples = {f"PSS after 1+1, {count} kernels/roost": [10.0, 10.5, 11.0, 11.5]}
        content = json.loads(Path(result(tmp_path, name, **samples)).read_text())
        content["settings"]["kernels"] = count
        content["capacity"] = {"vm": {"holds": {"1+1": held, "a completion": 500}}}
        (tmp_path / name).write_text(json.dumps(content))
        files.append(str(tmp_path / name))
    assert main(["bench", "compare", *files]) == 0
    said = capsys.readouterr().out
    assert "The settings differ: kernels is 20 and 5." in said
    assert "vm holds another number of kernels: 2099 → 1964 after 1+1." in said
    assert "0 figures have changed, 1 have not." in said
    assert "not in the other one" not in said


def test_a_result_is_printed_even_if_its_file_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("start")
    report.add("up", 1.0, "ms")
    gone = tmp_path / "gone" / "result.json"
    assert report.finish(argparse.Namespace(json=gone)) == 1
    said = capsys.readouterr()
    assert "up" in said.out
    assert said.err == f"roost: {gone} cannot be written: No such file or directory.\n"


def test_a_change_of_few_samples_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", result(tmp_path, "a", up=[1]), result(tmp_path, "b", up=[5, 6])]) == 0
    assert "Those with n < 4 may differ by noise alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in ("benchmark", "machine", "versions", "figures", "samples")),
        *({name: ["x"]} for name in ("benchmark", "machine", "versions", "figures", "samples")),
        {"samples": {"up": [float("nan")]}},
        {"samples": {"up": "12"}},
        {"samples": {"other": [1]}},
        {"figures": {"up": 5}},
        {"settings": None},
        {"capacity": {"vm": 5}},
    ],
)
def test_a_result_with_a_wrong_part_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object]
) -> None:
    right = result(tmp_path, "a", up=[1, 2, 3, 4])
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(json.loads(Path(right).read_text()) | changes))
    assert main(["bench", "compare", right, str(wrong)]) == 2
    assert "wrong.json is no result of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory."),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"benchmark": "sta', "its end is missing"),
        ("[]", "is no result of"),
    ],
)
def test_a_file_that_is_no_result_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    wrong = tmp_path / "wrong.json"
    if content is not None:
        wrong.write_text(content)
    assert main(["bench", "compare", str(wrong), str(wrong)]) == 2
    text = capsys.readouterr().err
    assert str(wrong) in text
    assert said in text


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"busy": 0.5}, "Other programs used 50% of the processors"),
        ({"spin_spread": 0.5}, "varied by more than a quarter"),
        ({"spin_ms": 2.0}, "1.00 → 2.00 ms"),
        ({"fault_us": 11.0}, "from 2.0 to 11.0 µs"),
    ],
)
def test_a_machine_that_is_not_quiet_is_doubted(changes: dict[str, float], doubt: str) -> None:
    (found,) = machine.find_doubts(QUIET, replace(QUIET, **changes))
    assert doubt in found
    assert not machine.find_doubts(QUIET, QUIET)


def test_the_machine_is_measured() -> None:
    found = machine.measure()
    assert found.fault_us > 0
    assert found.spin_ms > 0
    assert 0 <= found.busy <= 1


@pytest.mark.parametrize(
    ("limit", "room", "text"),
    [
        (
            "count",
            100 * MIB,
            (
                "a holds 12 idle kernels, 3 after a completion, limited by memory. "
                "This follows from the 2 that were started there."
            ),
        ),
        (
            "placement",
            0,
            "a holds 2 kernels, limited by their requests (no CPU is free). 2 were started there.",
        ),
        ("latency", 0, "a holds 2 kernels, limited by latency (no CPU is free). 2 were started there."),
    ],
)
def test_the_answer_says_what_limits_a_node(limit: str, room: float, text: str) -> None:
    side = Side(name="roost", kernelspec="roost", config=CONFIG)
    kernels = [BenchKernel(side), BenchKernel(side)]
    filled = Filled(kernels=kernels, nodes=dict.fromkeys(kernels, "a"), limit=limit, why="no CPU is free")
    filled.room = {"a": room}
    report = Report("density")
    memory = {"1+1": [mib(10)], "a completion": [mib(40)]}
    conclude(report, filled, memory)
    assert report.notes == [text]
    capacity: Any = report.capacity["a"]
    assert (capacity["started"], capacity["limit"]) == (2, limit)


def test_a_node_where_no_kernel_was_started_has_an_answer_too() -> None:
    kernel = BenchKernel(Side(name="roost", kernelspec="roost", config=CONFIG))
    filled = Filled(kernels=[kernel], nodes={kernel: "a"}, limit="count", why="one was asked for")
    filled.room = {"a": 100 * MIB, "b": 50 * MIB}
    report = Report("density")
    conclude(report, filled, {"1+1": [mib(10)], "a completion": [mib(40)]})
    assert report.notes[1] == (
        "b holds 5 idle kernels, 1 after a completion, limited by memory. "
        "None was started there: this follows from those on other nodes."
    )


async def test_the_kernels_that_were_asked_for_may_fill_a_node() -> None:
    """The last requested kernel fills the node. The benchmark still reports that the requested number was the limit."""

    class FullNode:
        async def nodes(self) -> list[dict[str, Any]]:
            amounts = {"memory_bytes": 8 << 30, "memory_promised_bytes": 0, "memory_used_bytes": 0}
            return [{"id": "a", "cpus": 2, "cpus_promised": 2, "devices": [], **amounts}]

    class SideOnFullNode(Side):
        def connect(self) -> Any:
            return FullNode()

    side = SideOnFullNode(name="roost", kernelspec="roost", config=CONFIG)
    kernels = [BenchKernel(side), BenchKernel(side)]
    filled = Filled(kernels=kernels, nodes=dict.fromkeys(kernels, "a"), starts_ms=[1.0, 1.0], slots={"a": 1})
    filled.limit, filled.why = await find_limit(
        Report("density"), side, filled, Limits(kernels=2, free=0.0, latency_s=1.0)
    )
    assert filled.limit == "count"
    report = Report("density")
    conclude(report, filled, {"1+1": [mib(1)]})
    assert report.capacity["a"]["holds"] == {"1+1": 2}


async def test_starts_end_before_the_open_files_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    monkeypatch.setattr(density, "find_free_descriptor", lambda: most - 100)
    side = Side(name="plain", kernelspec="plain")
    filled = Filled()
    filled.limit, filled.why = await find_limit(
        Report("density"), side, filled, Limits(kernels=2, free=0.0, latency_s=1.0)
    )
    assert filled.limit == "files"
    report = Report("density")
    conclude(report, filled, {"1+1": [mib(1)]})
    assert "raise the limit (ulimit -n)" in report.notes[-1]


def mib(pss: float) -> Memory:
    return Memory(pss=pss, uss=pss, dirty=pss, swap=0)


@pytest.mark.parametrize(
    ("request_", "slots"),
    [
        (Request(), math.inf),
        (Request(cpus=1), 2),
        (Request(cpus=0.3), 9),
        (Request(memory_bytes=3 << 30), 1),
        (Request(gpus=0.25), 5),
        (Request(gpus=2), 0),
        (Request(gpus=1, cpus=1), 1),
    ],
)
def test_slots_are_counted_by_what_kernels_ask_for(request_: Request, slots: float) -> None:
    node = {
        "cpus": 4.0,
        "cpus_promised": 1.2,
        "memory_bytes": 8 << 30,
        "memory_promised_bytes": 4 << 30,
        "devices": [{"promised": 0.0}, {"promised": 0.75}],
    }
    assert count_slots(node, request_) == slots


def test_decisions_are_measured_by_policy_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "placement.json"
    options = ["--nodes", "60", "--nodes", "30", "--policy", "pack", "--policy", "balanced", "--rounds", "1"]
    assert main(["bench", "placement", "--quick", *options, "--json", str(file)]) == 0
    found = json.loads(file.read_text())["figures"]
    for name in ("pack on 60 nodes", "balanced on 30 nodes"):
        assert 0 < found[f"decision p50/{name}"]["median"] <= found[f"decision p99/{name}"]["median"]
        assert found[f"never seen/{name}"]["unit"] == "ms"


def test_a_cluster_that_is_drawn_is_busy() -> None:
    requests = placement.draw_requests(seed=1)
    empty = placement.draw_nodes(100, seed=1)
    busy = placement.fill_nodes(empty, requests, 0.85)
    gpus = sum(node.gpus for node in empty)
    assert gpus > 200
    assert 0.7 < sum(device.promised for node in busy for device in node.devices) / gpus <= 0.85
    copies = placement.copy_nodes(busy, 250)
    assert len({node.id for node in copies}) == 250


def test_an_unknown_policy_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "placement", "--policy", "no-such"]) == 2
    assert "unknown policy 'no-such'; known are balanced" in capsys.readouterr().err


TASKS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"
CLUSTER = "sn,cpu_milli,memory_mib,gpu,model\na,64000,65536,4,T4\nb,64000,65536,4,T4\n"
POLICY = """
from roost.placement import Decision

class Refuses:
    name = "refuses"
    def place(self, request, snapshot, *, avoid):
        return Decision(request=request, policy=self.name)

class Fails(Refuses):
    def place(self, request, snapshot, *, avoid):
        raise LookupError("no idea")

class Exits(Refuses):
    def place(self, request, snapshot, *, avoid):
        raise SystemExit(3)
"""


@pytest.fixture
def trace(tmp_path: Path) -> list[str]:
    """Write a trace, a cluster and a file with policies. Return the arguments that name trace and cluster."""
    (tmp_path / "tasks.csv").write_text(
        TASKS + "half,1000,1024,1,500\nbig,1000,1024,8,1000\nhuge,1,1,64,1000\n"
    )
    (tmp_path / "nodes.csv").write_text(CLUSTER)
    (tmp_path / "mine.py").write_text(POLICY)
    return [str(tmp_path / "tasks.csv"), "--cluster", str(tmp_path / "nodes.csv")]


def test_policies_are_compared_on_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trace: list[str]
) -> None:
    (tmp_path / "tasks.csv").write_text(TASKS + "half,1000,1024,1,500\nwhole,1000,1024,1,1000\n")
    mine = f"{tmp_path / 'mine.py'}:Refuses"
    file = tmp_path / "placement.json"
    options = ["--policy", "pack", "--policy", mine, "--rounds", "2", "--json", str(file)]
    assert main(["bench", "placement", *trace, *options]) == 0
    found = json.loads(file.read_text())["figures"]
    allocated, refused = (
        found[f"{figure}/pack on nodes.csv"] for figure in ("allocated at 100 %", "refused")
    )
    assert (allocated["n"], refused["n"]) == (2, 2)
    assert 85 < allocated["median"] <= 100
    assert 10 < refused["median"] < 30
    assert found[f"refused/{mine} on nodes.csv"]["median"] == 100
    assert found["decision p50/pack on nodes.csv"]["unit"] == "µs"


async def test_an_interrupted_policy_ends(trace: list[str]) -> None:
    report = Report("placement")
    report.is_interrupted = True
    timed = policies.TimedPolicy(name="pack", policy=get_policy("pack"), report=report)
    with pytest.raises(asyncio.CancelledError):
        timed.place(Request(), Snapshot.of(trace_files.read_cluster(trace[2])))


def test_a_log_is_played_as_recorded(tmp_path: Path, trace: list[str]) -> None:
    log, file = tmp_path / "log", tmp_path / "placement.json"
    lines = [
        (0, 0, 9),
        (1, 2, 12),
        (5, 5, 6),
        (20, 20, 30),
    ]  # asked, placed, ended; each takes half of the GPUs
    texts = [
        json.dumps({"asked_at": at, "placed_at": placed, "ended_at": ended, "request": {"gpus": 4}})
        for at, placed, ended in lines
    ]
    logger = "2026-11-30 14:05:03,123 INFO roost.scheduler.service.decision_log"
    log.write_text("".join(f"{logger} kernel=k decided {text}\n" for text in texts))
    assert main(["bench", "placement", str(log), *trace[1:], "--policy", "pack", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["figures"]
    assert found["refused/pack on nodes.csv"]["median"] == 25
    assert found["allocated at the end/pack on nodes.csv"]["median"] == 50
    assert "allocated at 100 %/pack on nodes.csv" not in found


def test_requests_that_fit_no_node_are_counted(capsys: pytest.CaptureFixture[str], trace: list[str]) -> None:
    assert main(["bench", "placement", *trace, "--policy", "pack", "--quick"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 requests would fit no node of nodes.csv, even an empty one, and count as refused." in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cluster", "x.csv"], "--cluster has no effect without a trace"),
        (["{trace}", "--live"], "Give a trace or --live, not both"),
        (["{trace}", "--cluster", "{nodes}", "--nodes", "5"], "--nodes has no effect on a trace"),
        (["{trace}", "--cluster", "none.csv"], "none.csv cannot be read: No such file or directory."),
        (
            ["{trace}", "--cluster", "{nodes}", "--policy", "{mine}:Fails"],
            "failed (LookupError: no idea, at mine.py:11)",
        ),
        (
            ["{trace}", "--cluster", "{nodes}", "--policy", "{mine}:Exits"],
            "failed (SystemExit: 3, at mine.py:15)",
        ),
        (["{trace}", "--cluster", "{nodes}", "--policy", "{mine}:None_"], "has no 'None_'"),
    ],
)
def test_a_wrong_option_of_placement_is_one_sentence(
    capsys: pytest.CaptureFixture[str], trace: list[str], tmp_path: Path, options: list[str], said: str
) -> None:
    names = {"trace": trace[0], "nodes": trace[2], "mine": str(tmp_path / "mine.py")}
    assert main(["bench", "placement", *(option.format(**names) for option in options)]) == 2
    assert said in capsys.readouterr().err
