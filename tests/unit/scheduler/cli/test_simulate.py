"""`roost simulate` on files and on a scheduler's nodes: table, JSON, picture and errors."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import roost
from roost.placement import Device, Node, Request
from roost.scheduler.cli import main
from roost.scheduler.client.service_folder import service_folder

OK = tuple[int, str, str]
Simulate = Callable[..., OK]

NODES = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(f"n{i},16000,65536,2,A100\n" for i in range(4))
TASKS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time\n" + "".join(
    f"t{i},{1000 * (1 + i % 4)},1024,{1 + i % 2},{500 if not i % 2 and i % 3 else 1000},,{10 * i},{10 * i + 45}\n"
    for i in range(40)
)
OWN_POLICY = """
import os, time
from roost.placement import Decision, Placement
from roost.placement.shipped_policies import pack as mine

class Broken:
    name = "broken"
    def place(self, request, snapshot, *, avoid=None):
        return 1 / 0

class Wrong(Broken):
    def place(self, request, snapshot, *, avoid=None):
        return "n0"

class Chooses(Broken):
    node, devices = "nowhere", ()
    def place(self, request, snapshot, *, avoid=None):
        placement = Placement(node_id=self.node, device_ids=self.devices) if self.node else None
        return Decision(request=request, policy="chooses", placement=placement)

class NoDevice(Chooses):
    node, devices = "n0", ("7",)

class Full(Chooses):
    node = "n0"

class Silent(Chooses):
    node = ""

class Leaves(Broken):
    def place(self, request, snapshot, *, avoid=None):
        raise SystemExit(0)

class Exits(Broken):
    def place(self, request, snapshot, *, avoid=None):
        os._exit(0)

class Crashes(Broken):
    def place(self, request, snapshot, *, avoid=None):
        os.kill(os.getpid(), 11)

class Closes(Broken):
    def place(self, request, snapshot, *, avoid=None):
        os.closerange(3, 1_000)
        time.sleep(1_000)

class Quits(Broken):
    def __init__(self):
        os._exit(3)
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "nodes.csv").write_text(NODES)
    (tmp_path / "tasks.csv").write_text(TASKS)
    (tmp_path / "mine.py").write_text(OWN_POLICY)
    return tmp_path


@pytest.fixture
def simulate(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simulate:
    """Return a function that runs the command in the folder of the files. It returns exit code, stdout and stderr."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments: str, nodes: tuple[str, ...] = ("--nodes", "nodes.csv")) -> OK:
        code = main.main(["simulate", *nodes, *arguments])
        return code, *capsys.readouterr()

    return run


def test_compares_the_shipped_policies(simulate: Simulate) -> None:
    code, out, err = simulate("tasks.csv")
    assert (code, "Traceback" in err) == (0, False)
    assert out.startswith(
        "Random requests for 130 % of the resources, without departures, on 4 nodes with 8 GPUs."
    )
    for name in ("balanced", "fgd", "best_fit", "pack", "spread", "round_robin", "random"):
        assert f"\n{name} " in out
    assert "AT 100 %" in out
    assert "AT 125 %" in out  # the next request would be more than 130 %
    assert "±" in out
    assert "Means of 3 seeds" in out


def test_writes_json_and_is_the_same_each_time(simulate: Simulate, files: Path) -> None:
    for name in ("one", "two"):
        assert simulate("tasks.csv", "--policy", "pack", "--seeds", "2", "--json", f"{name}.json")[0] == 0
    one, two = (json.loads((files / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["nodes"], one["capacity"], one["resource"], list(one["policies"])) == (
        4,
        8.0,
        "gpus",
        ["pack"],
    )
    runs = one["policies"]["pack"]["runs"]
    assert [run["seed"] for run in runs] == [42, 43]
    assert one["policies"]["pack"]["mean"]["allocated_at_end"] <= 100.0
    assert runs[0]["points"][0] == {
        "percent": 0, "arrived": 0.0, "allocated": 0.0, "refused": 0.0, "fragmented": 0.0,
    }  # fmt: skip
    assert [run["points"] for run in runs] == [run["points"] for run in two["policies"]["pack"]["runs"]]


def test_json_on_stdout_is_the_only_thing_there(simulate: Simulate) -> None:
    code, out, _ = simulate("tasks.csv", "--policy", "fgd", "--seeds", "1", "--json", "-", "--demand", "0.5")
    assert code == 0
    assert max(point["percent"] for point in json.loads(out)["policies"]["fgd"]["runs"][0]["points"]) == 50


def test_departures_and_recorded_times(simulate: Simulate) -> None:
    code, out, _ = simulate(
        "tasks.csv", "--departures", "--load", "0.2", "--arrivals", "30", "--policy", "pack"
    )
    assert (code, out.startswith("30 Poisson arrivals at a load of 0.2, with departures, on 4 nodes")) == (
        0,
        True,
    )
    assert "AT THE END: GPUs allocated when the last request had arrived." in " ".join(out.split())
    assert "AT 1" not in out
    code, out, _ = simulate("tasks.csv", "--recorded", "--policy", "pack")
    assert out.splitlines()[2].split()[:4] == ["POLICY", "AT", "THE", "END"]
    code, out, _ = simulate("tasks.csv", "--recorded", "--policy", "pack", "--json", "-")
    (run,) = json.loads(out)["policies"]["pack"]["runs"]
    assert (run["requests"], run["refused"]) == (40, 0.0)


def test_more_nodes_refuse_less(simulate: Simulate, files: Path) -> None:
    refused = []
    for more in ((), ("--add", "1xn0"), ("--add", "2x32cpus,128GiB,4xA100", "--add", "1xn1")):
        code, out, _ = simulate(
            "tasks.csv", "--departures", "--load", "2", "--policy", "pack", "--json", "-", *more
        )
        assert code == 0
        refused.append(json.loads(out)["capacity"])
    assert refused == [8.0, 10.0, 18.0]


def test_counts_cpus_if_no_request_has_gpus(simulate: Simulate, files: Path) -> None:
    (files / "cpu.csv").write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,2000,0,0,0\n")
    code, out, _ = simulate("cpu.csv", "--policy", "spread")
    assert code == 0
    assert "on 4 nodes with 64 CPUs." in out


def test_says_how_many_requests_no_node_could_ever_serve(simulate: Simulate, files: Path) -> None:
    header, task = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n", "{},{},0,0,0\n"
    (files / "large.csv").write_text(header + task.format("a", 2000) + 2 * task.format("b", 900_000))
    _, out, _ = simulate("large.csv", "--policy", "spread", "--demand", "100")
    assert "2 of 3 requests would fit no node, even an empty one, and count as refused." in out
    _, out, _ = simulate("tasks.csv", "--policy", "spread")
    assert "even an empty one" not in out


def test_a_policy_in_a_file(simulate: Simulate) -> None:
    code, out, _ = simulate(
        "tasks.csv", "--policy", "mine.py:mine", "--policy", "pack", "--seeds", "1", "--json", "-"
    )
    assert code == 0
    found = json.loads(out)["policies"]
    assert found["mine.py:mine"]["runs"][0]["points"] == found["pack"]["runs"][0]["points"]


def test_a_policy_of_the_operator(simulate: Simulate, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "etc").mkdir()
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(files / "etc"))
    (files / "etc" / "jupyter_roost_config.py").write_text(
        'c.RoostScheduler.policies = {"ours": "../mine.py:mine"}\n'
    )
    code, out, _ = simulate("tasks.csv", "--policy", "ours", "--seeds", "1")
    assert (code, "\nours " in out) == (0, True)
    code, _, err = simulate("tasks.csv", "--policy", "yours")
    assert (code, err.rstrip().endswith(", ours.")) == (2, True)


class Answer:
    def result(self, timeout: float | None = None) -> Any:
        assert timeout is not None
        node = Node(
            id="here", cpus=8, memory_bytes=32 << 30, cpus_used=7, devices=(Device(id="GPU-0", model="T4"),)
        )
        return [node.with_kernel(Request(gpus=0.5), ["GPU-0"]).to_dict()]


class NoTypes:
    def result(self, timeout: float) -> list[dict[str, Any]]:
        return []


class StubClient:
    options: dict[str, Any] = {}

    def nodes(self) -> Answer:
        return Answer()

    def node_types(self) -> NoTypes:
        return NoTypes()


def test_a_saved_snapshot_and_a_live_one(
    simulate: Simulate, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roost, "connect", lambda *_, **__: StubClient())
    (files / "saved.json").write_text(json.dumps({"nodes": Answer().result(1.0)}))
    for nodes in (("--snapshot", "saved.json"), ("--live",)):
        first = []
        for empty in ((), ("--empty",)):
            code, out, _ = simulate("tasks.csv", "--policy", "pack", "--json", "-", *empty, nodes=nodes)
            assert code == 0
            first.append(json.loads(out)["policies"]["pack"]["runs"][0]["points"][0]["allocated"])
        assert first == [50.0, 0.0]


def test_the_decision_log_is_the_default_trace(
    simulate: Simulate, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roost, "connect", lambda *_, **__: StubClient())
    (files / "r").mkdir(mode=0o700)
    monkeypatch.setenv("ROOST_RUNTIME_DIR", str(files / "r"))
    code, _, err = simulate(nodes=("--live",))
    assert (code, err) == (
        2,
        "roost: the scheduler of the backend local has made no decision yet: name a trace, or another --backend.\n",
    )
    line = {
        "at": "2026-11-20T10:00:05.000+00:00",
        "what": "placed",
        "kernel": "k",
        "asked_at": "2026-11-20T10:00:00.000+00:00",
        "request": {"gpus": 0.5},
    }
    folder = service_folder("local", {})
    folder.mkdir()
    (folder / "decisions.jsonl").write_text(json.dumps(line) + "\n")
    assert simulate("--recorded", nodes=("--live",))[0] == 2  # the only kernel still runs on its node
    code, out, _ = simulate("--recorded", "--policy", "pack", "--empty", nodes=("--live",))
    assert code == 0
    assert out.startswith("1 request as recorded, on 1 node with 1 GPU.\n\n")
    refused = json.dumps({**line, "what": "refused", "kernel": "r"})
    with (folder / "decisions.jsonl").open("a") as log:
        log.write(f"{refused}\n")
    code, out, _ = simulate("--recorded", "--policy", "pack", nodes=("--live",))
    assert code == 0
    assert out.splitlines()[:2] == [
        "1 request as recorded, on 1 node with 1 GPU.",
        "1 kernel left out, still running on the nodes (--empty includes them).",
    ]


def test_the_table_is_readable_on_80_columns(
    simulate: Simulate, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    policies = ("--policy", f"{files}/mine.py:mine", "--policy", "round_robin")
    (files / "a_policy_of_a_long_name.py").write_text(OWN_POLICY)
    code, out, _ = simulate("tasks.csv", *policies)
    assert (code, "±" in out, "FRAGMENTED" in out) == (0, True, True)
    assert max(map(len, out.splitlines())) <= 80
    assert "\nmine.py:mine  " in out
    code, out, _ = simulate("tasks.csv", *policies, "--policy", f"{files}/a_policy_of_a_long_name.py:mine")
    assert (code, "REQUESTS" in out) == (0, True)
    assert "\na_policy_of_a_long_name.py:mine  " in out


def test_draws(simulate: Simulate, files: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the bench extra")
    assert simulate("tasks.csv", "--policy", "pack", "--seeds", "2", "--plot", "o.svg")[0] == 0
    assert "<svg" in (files / "o.svg").read_text()
    code, _, err = simulate("tasks.csv", "--policy", "pack", "--plot", "o.nonsense")
    assert code == 2
    assert err.startswith("roost: --plot o.nonsense: the file name must end with one of ")
    code, out, err = simulate("none.csv", "--plot", "o")  # reported before any file is read
    assert (code, out, err.startswith("roost: --plot o: ")) == (2, "", True)


def test_without_matplotlib_only_the_picture_is_missing(
    simulate: Simulate, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    code, out, err = simulate("tasks.csv", "--policy", "pack", "--plot", "o.png", "--json", "o.json")
    assert code == 1
    assert "\npack " in out
    assert "no plot: matplotlib is not installed (`pip install matplotlib`)" in err
    assert (files / "o.json").exists()
    assert not (files / "o.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no trace: name a file. Only --live uses the scheduler's decision log by default."),
        (("none.csv",), "none.csv cannot be read: No such file or directory."),
        (("nodes.csv",), "nodes.csv is not a list of tasks: it has no column name (needed: name"),
        (("tasks.csv", "--add", "quite a few"), "--add 'quite a few' must be a number and a node"),
        (("tasks.csv", "--policy", "no_such"), "unknown policy 'no_such'"),
        (("tasks.csv", "--policy", "none.py:X"), "the placement policy none.py:X cannot be loaded (FileNotFoundError"),
        (("tasks.csv", "--policy", "mine.py:Broken"), "policy mine.py:Broken failed (ZeroDivisionError: division"),
        (("tasks.csv", "--policy", "mine.py:Wrong"), "policy mine.py:Wrong failed (TypeError: place gave str"),
        (("tasks.csv", "--policy", "mine.py:Chooses"), "policy mine.py:Chooses failed (ValueError: it chose 'nowhere'"),
        (("one.csv", "--policy", "mine.py:NoDevice"), "policy mine.py:NoDevice failed (ValueError: it chose device"),
        (("tasks.csv", "--policy", "mine.py:Full"), "policy mine.py:Full failed (ValueError: it chose n0, which"),
        (("tasks.csv", "--policy", "mine.py:Silent"), "policy mine.py:Silent failed (ValueError: it gave neither"),
        (("tasks.csv", "--policy", "mine.py:Leaves"), "policy mine.py:Leaves failed (SystemExit: 0, at mine.py:"),
        (("tasks.csv", "--policy", "mine.py:Exits"), "policy mine.py:Exits failed (its process exited with code 0)."),
        (("tasks.csv", "--policy", "mine.py:Crashes"), "policy mine.py:Crashes failed (its process was ended by SIGS"),
        (("tasks.csv", "--policy", "mine.py:Closes"), "policy mine.py:Closes failed (its process closed the socket"),
        (("tasks.csv", "--policy", "mine.py:Quits"), "policy mine.py:Quits failed (its process exited with"),
        (("tasks.csv", "--policy", "mine.py"), "policy mine.py is a file: give it as path/to/file.py:Name."),
        (("tasks.csv", "--demand", "0"), "--demand must be more than 0."),
        (("tasks.csv", "--seeds", "-" + "9" * 500), "--seeds must be more than 0"),
        (("tasks.csv", "--load", "0.9"), "--load has no effect without --departures: leave it out."),
        (("tasks.csv", "--arrivals", "9"), "--arrivals has no effect without --departures"),
        (("tasks.csv", "--departures", "--demand", "1"), "--demand has no effect with --departures"),
        (("tasks.csv", "--recorded", "--demand", "1"), "--demand has no effect with --recorded"),
        (("tasks.csv", "--recorded", "--seeds", "1"), "--seeds has no effect with --recorded"),
        (("tasks.csv", "--empty"), "--empty has no effect with --nodes"),
        (("tasks.csv", "--demand", "1e300"), "that would be more than 1,000,000 arrivals for 3 seeds"),
        (("tasks.csv", "--seeds", "9" * 500), "that would be more than 1,000,000 arrivals"),
        (("tasks.csv", "--departures", "--load", "1e7"), "that would be more than 1,000,000 arrivals"),
        (("tasks.csv", "--departures", "--arrivals", "9" * 500), "that would be more than 1,000,000 arrivals"),
        (("many.csv", "--recorded"), "the requests exceed the nodes' resources more than 10,000 times"),
        (("tasks.csv", "--demand", "0.01"), "--demand 0.01 leaves no request of the trace: give"),
        (("tasks.csv", "--json", "no/folder.json"), "--json no/folder.json: there is no folder no."),
        (("tasks.csv", "--nodes", "twice.csv"), "twice.csv: two nodes have the id 'n1'; give each its own."),
        (("nothing.csv",), "the trace requests no resource that the nodes have."),
        (("cpus.csv", "--departures"), "no task of the trace that ends asks for CPUs"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(
    simulate: Simulate, files: Path, arguments: tuple[str, ...], said: str
) -> None:
    head = TASKS.partition("\n")[0]
    (files / "nothing.csv").write_text(f"{head}\na,0,0,0,0,,,\n")
    (files / "one.csv").write_text(f"{head}\na,1000,1024,1,1000,,,\n")
    (files / "many.csv").write_text(f"{head}\na,1000,1024,900000000000000,1000,,,\n")
    (files / "cpus.csv").write_text(f"{head}\na,1000,0,0,0,,,\n")
    (files / "twice.csv").write_text(NODES + "n1,1000,1024,0,\n")
    code, out, err = simulate(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"roost: {said}")
    assert err.count("\n") == 1


def test_nodes_must_be_chosen(simulate: Simulate, capsys: pytest.CaptureFixture[str]) -> None:
    for nodes in ((), ("--live", "--nodes", "nodes.csv")):
        with pytest.raises(SystemExit):
            simulate("tasks.csv", nodes=nodes)
        assert "Traceback" not in capsys.readouterr().err
