"""Traces and nodes from files, and the messages about wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roost.placement import Device, Node, NodeType, Request
from roost.placement.trace_run import Arrival
from roost.scheduler.errors import ConfigError
from roost.scheduler.simulate import trace_files
from roost.scheduler.simulate.trace_files import add_nodes, read_ended, read_nodes, read_trace

NODES = "sn,cpu_milli,memory_mib,gpu,model\n"
TASKS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"
TIMED = TASKS.strip() + ",gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"


def written(folder: Path, text: str, name: str = "trace") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_nodes_of_openb(tmp_path: Path) -> None:
    path = written(tmp_path, f"{NODES}b,64000,1024,2,P100\na,1500,512,0,\n")
    assert read_nodes(path) == [
        Node(
            id="b",
            cpus=64,
            memory_bytes=1 << 30,
            devices=(Device(id="0", model="P100"), Device(id="1", model="P100")),
        ),
        Node(id="a", cpus=1.5, memory_bytes=512 << 20),
    ]


def test_tasks_of_openb(tmp_path: Path) -> None:
    rows = "w,1000,1024,1,1000\np,1000,0,1,250\nm,0,0,4,1000\nc,500,1024,0,0\n"
    assert [arrival.request.gpus for arrival in read_trace(written(tmp_path, TASKS + rows))] == [
        1.0,
        0.25,
        4.0,
        0.0,
    ]
    rows = "late,1000,1024,1,500,V100M16|V100M32,LS,Running,50,90,51\nsoon,0,0,0,0,T4,BE,Failed,10,,\n"
    assert read_trace(written(tmp_path, TIMED + rows)) == [
        Arrival(request=Request(), at_s=10.0),
        Arrival(
            request=Request(cpus=1, memory_bytes=1 << 30, gpus=0.5, gpu_models=("V100M16", "V100M32")),
            at_s=50.0,
            duration_s=40.0,
        ),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"{TASKS}a,1000,1024,1,1000\nb,many,1024,1,1000\n",
            "line 3: cpu_milli must be a number; got 'many'.",
        ),
        (f"{TASKS}a,1000,1024,1\n", "line 2: gpu_milli must be a number; got ''."),
        (
            f"{TASKS}a,-1,1024,1,1000\n",
            "line 2: cpus must not be negative; got -0.001. Use 0 to ask for none.",
        ),
        (f"{TASKS}a,1,1.5,1,1000\n", "line 2: memory_mib must be a whole number, 0 or more; got '1.5'."),
        (
            f"{TASKS}a,1,1,2,500\n",
            "line 2: 2 GPUs of 0.5 each are impossible: a share is part of one GPU.",
        ),
        (
            f"{TASKS}a,1,1,1,1500\n",
            "line 2: gpus must be at most 1 (a share of one GPU) or a whole number; got 1.5",
        ),
        (f"{TIMED}a,1,1,1,1000,,,,9,5,\n", "line 2: deletion_time is before creation_time."),
        ("name,cpu_milli\n", "is not a list of tasks: it has no column memory_mib"),
        (
            f"{TASKS[:-1]},labels\na,1,1,0,0,zone=a\n",
            "has the column 'labels', which a simulation does not read: leave it out.",
        ),
        (f"{TASKS[:-1]},qos,team,\n", "has the columns 'team', '', which a simulation does not read"),
        (f"{TASKS}a,1,1,0,0,more\n", "line 2: it has more values than columns."),
        ("", "is not a list of tasks: it has no column name"),
        (TASKS, "has no tasks."),
        ('{"what": "placed"}\n', "line 1: this line is not from a decision log"),
        ('{"nodes": []}\n', "line 1: this line is not from a decision log. Remove it, or give another file."),
        (
            '{"what": "ended", "a\n',
            "line 1: this line is not from a decision log. Remove it, or give another file.",
        ),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(path)
    assert said in str(caught.value)


def test_columns_of_nodes_that_are_not_read_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, f"{NODES[:-1]},labels\na,1000,1024,0,,zone=a\n")
    with pytest.raises(ConfigError) as caught:
        read_nodes(path)
    assert str(caught.value) == (
        f"{path} has the column 'labels', which a simulation does not read: leave it out. "
        "Nodes with more properties come from --snapshot."
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "none")):
        for read in (read_trace, read_nodes):
            with pytest.raises(ConfigError, match=r"cannot be read: .*\.$"):
                read(path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is neither a CSV file nor a decision log"):
        read_nodes(str(tmp_path / "bytes"))
    with pytest.raises(ConfigError, match="has no nodes"):
        read_nodes(written(tmp_path, NODES))


def line(what: str, kernel: str, at: int, asked: int = 0, **request: Any) -> str:
    return json.dumps(
        {
            "at": f"2026-11-20T10:00:{at:02}.000+00:00",
            "what": what,
            "user": "ada",
            "kernel": kernel,
            "asked_at": f"2026-11-20T10:00:{asked:02}.000+00:00",
            "request": {"gpus": 1, "labels": {"zone": "a"}, **request},
        }
    )


def test_a_decision_log_is_read_with_the_older_one(tmp_path: Path) -> None:
    before = [line("ended", "unknown", 0), line("placed", "k", 5, 1, gpus=0.5)]
    now = [
        line("refused", "r", 6, 2, gpus=8),
        line("ended", "k", 15, 1, gpus=0.5),
        line("placed", "moved", 20, 20),
        line("placed", "moved", 30, 20),
    ]
    written(tmp_path, "\n".join(before) + "\n", "log.old")
    arrivals = read_trace(written(tmp_path, "\n".join(now) + "\n", "log"))
    first_s = arrivals[0].at_s
    assert [(a.request.gpus, a.at_s - first_s, a.duration_s) for a in arrivals] == [
        (0.5, 0.0, 10.0),
        (8.0, 1.0, None),
        (1.0, 19.0, 10.0),
        (1.0, 19.0, None),
    ]
    assert (arrivals[0].request.labels, arrivals[0].request.owner) == ({"zone": "a"}, "ada")


A100 = Node(id="big", cpus=96, memory_bytes=1 << 40, labels={"zone": "a"}, devices=(Device(id="GPU-x"),))


@pytest.mark.parametrize(
    ("specification", "count", "cpus", "memory_bytes", "models"),
    [
        ("4x96cpus,384GiB,8xA100", 4, 96.0, 384 << 30, ["A100"] * 8),
        ("1x1.5 cpus,2 gpus", 1, 1.5, 0, ["", ""]),
        ("2x1gpu,1cpu,16g", 2, 1.0, 16 << 30, [""]),
        ("1x8cpus,2x NVIDIA A100-SXM4-80GB,1xT4", 1, 8.0, 0, ["NVIDIA A100-SXM4-80GB"] * 2 + ["T4"]),
    ],
)
def test_nodes_to_add(
    specification: str, count: int, cpus: float, memory_bytes: int, models: list[str]
) -> None:
    more = add_nodes([A100], specification)
    assert len({node.id for node in [A100, *more]}) == count + 1
    assert {(node.cpus, node.memory_bytes) for node in more} == {(cpus, memory_bytes)}
    assert [device.model for device in more[0].devices] == models


def test_copies_of_a_node_are_empty(tmp_path: Path) -> None:
    more = add_nodes([A100.with_kernel(Request(cpus=4, gpus=1), ["GPU-x"])], "2xbig")
    assert [node.id for node in more] == ["added-0001", "added-0002"]
    assert (more[1].cpus_promised, more[1].devices[0].promised, more[1].labels) == (0.0, 0.0, {"zone": "a"})
    assert [node.id for node in add_nodes([A100, *more], "1xbig")] == ["added-0003"]


def test_a_type_of_nodes_can_be_added_by_its_name() -> None:
    more = add_nodes([], "3xbig", [NodeType(node=A100, limit=1)])
    assert [(node.id, node.cpus) for node in more] == [(f"added-000{n}", 96) for n in (1, 2, 3)]
    with pytest.raises(ConfigError, match="nor the name of a node; the nodes are big"):
        add_nodes([], "3xsmall", [NodeType(node=A100)])


@pytest.mark.parametrize("specification", ["", "4", "x8cpus", "0x8cpus", "-1x8cpus", "4x"])
def test_added_nodes_need_a_number_and_a_kind(specification: str) -> None:
    with pytest.raises(ConfigError, match="must be a number and a node"):
        add_nodes([A100], specification)


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        ("200000xbig", "makes more than 200,000 nodes"),
        (f"{'9' * 5000}x8cpus", "makes more than 200,000 nodes"),
        ("1x8cpus,60xT4,5xA100", "a node can have at most 64 GPUs"),
        ("1x99999999gpus", "a node can have at most 64 GPUs"),
    ],
)
def test_too_many_nodes_to_add(specification: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        add_nodes([A100], specification)


def test_too_many_nodes_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="line 2: a node can have at most 64 GPUs; got 100000000"):
        read_nodes(written(tmp_path, f"{NODES}a,1000,1024,100000000,\n"))
    monkeypatch.setattr(trace_files, "MOST_TASKS", 2)
    with pytest.raises(ConfigError, match="has more than 2 tasks: give fewer"):
        read_trace(written(tmp_path, TASKS + "a,1000,1024,1,1000\n" * 3))
    with pytest.raises(ConfigError, match="has more than 2 lines: give fewer"):
        read_trace(written(tmp_path, "\n".join([line("refused", "r", 6)] * 3)))


def test_running_kernels_can_be_left_out(tmp_path: Path) -> None:
    lines = [
        line("placed", "old", 5),
        line("placed", "runs", 6),
        line("ended", "old", 7),
        line("refused", "r", 8),
    ]
    path = written(tmp_path, "\n".join(lines))
    ended, running = read_ended(path)
    assert ([arrival.duration_s for arrival in ended], running) == ([2.0, None], 1)
    assert len(read_trace(path)) == 3


def test_an_unknown_kind_of_node_to_add() -> None:
    with pytest.raises(
        ConfigError, match=r"'large' is neither 96cpus, 384GiB, 8xA100 nor the name of a node"
    ):
        add_nodes([A100], "2x8cpus,large")
