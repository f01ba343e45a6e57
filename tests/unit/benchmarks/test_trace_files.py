"""Traces and nodes from files, and the messages about wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roost.bench import trace_files
from roost.bench.trace_files import read_cluster, read_nodes, read_trace
from roost.bench.trace_run import Arrival
from roost.placement import Device, Node, Request, Snapshot
from roost.scheduler.errors import ConfigError

NODES = "sn,cpu_milli,memory_mib,gpu,model\n"
TASKS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\n"
TIMED = TASKS.strip() + ",gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"


def written(folder: Path, text: str, name: str = "trace.csv") -> str:
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
            "has the column 'labels', which roost does not read: leave it out.",
        ),
        (f"{TASKS[:-1]},qos,user,\n", "has the columns 'user', '', which roost does not read"),
        (f"{TASKS}a,1,1,0,0,more\n", "line 2: it has more values than columns."),
        ("", "is not a list of tasks: it has no column name"),
        (TASKS, "has no tasks."),
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
    assert str(caught.value) == f"{path} has the column 'labels', which roost does not read: leave it out."


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (str(tmp_path), str(tmp_path / "none")):
        for read in (read_trace, read_nodes, read_cluster):
            with pytest.raises(ConfigError, match=r"cannot be read: .*\.$"):
                read(path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is neither a CSV file nor the log of a service"):
        read_nodes(str(tmp_path / "bytes"))
    with pytest.raises(ConfigError, match="has no nodes"):
        read_nodes(written(tmp_path, NODES))


def line(asked: float, placed: float | None, ended: float, **request: Any) -> str:
    request = {"gpus": 1, "labels": {"zone": "a"}, **request}
    decision = {"asked_at": asked, "placed_at": placed, "ended_at": ended, "request": request}
    logger = "roost.scheduler.service.decision_log"
    return f"2026-11-30 14:05:03,123 INFO {logger} kernel=k decided {json.dumps(decision)}\n"


OTHER = "2026-11-30 14:05:03,123 INFO roost.scheduler.core.events kernel=k node=a released stopped\n"


def test_the_log_of_a_service_is_read_with_the_one_before(tmp_path: Path) -> None:
    written(tmp_path, OTHER + line(21.0, 25.0, 35.0, gpus=0.5), "log.old")
    now = line(22.0, None, 23.0, gpus=8) + OTHER + line(20.0, 20.5, 20.0)
    assert read_trace(written(tmp_path, now, "log")) == [
        Arrival(request=Request(gpus=1, labels={"zone": "a"}), at_s=20.0, duration_s=0.0),
        Arrival(request=Request(gpus=0.5, labels={"zone": "a"}), at_s=21.0, duration_s=10.0),
        Arrival(request=Request(gpus=8, labels={"zone": "a"}), at_s=22.0, duration_s=None),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (OTHER, "has no decision of a service, or no kernel has ended yet"),
        (OTHER + line(1, 1, 2, gpus=-1), "log, line 2: "),
        (line(1, 1, 2).replace('"ended_at": 2', '"ended_at": []'), "line 1: this decision cannot be read"),
        (line(1, 1, 2).replace('"labels"', "labels"), "line 1: this decision cannot be read"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path, text, "log"))
    assert said in str(caught.value)


def test_a_saved_cluster_is_read_without_its_kernels(tmp_path: Path) -> None:
    node = Node(id="big", cpus=96, memory_bytes=1 << 40, devices=(Device(id="GPU-x"),))
    saved = {"nodes": [node.with_kernel(Request(cpus=4, gpus=1), ["GPU-x"]).to_dict()]}
    (read,) = read_cluster(written(tmp_path, json.dumps(saved), "nodes.json"))
    assert (read.id, read.cpus_promised, read.devices[0].promised) == ("big", 0.0, 0.0)
    listed = read_cluster(written(tmp_path, f"{NODES}a,1000,1024,1,T4\nb,1000,1024,0,\n", "nodes.csv"))
    assert len(Snapshot.of(listed)) == 2
    with pytest.raises(ConfigError, match=r"nodes\.csv: "):
        read_cluster(written(tmp_path, f"{NODES}a,1000,1024,1,T4\na,1000,1024,0,\n", "nodes.csv"))


def test_too_many_nodes_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="line 2: a node can have at most 64 GPUs; got 100000000"):
        read_nodes(written(tmp_path, f"{NODES}a,1000,1024,100000000,\n"))
    monkeypatch.setattr(trace_files, "MOST_TASKS", 2)
    with pytest.raises(ConfigError, match="has more than 2 tasks: give fewer"):
        read_trace(written(tmp_path, TASKS + "a,1000,1024,1,1000\n" * 3))
