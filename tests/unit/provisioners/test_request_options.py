"""Requests from kernelspec options and KERNEL_* variables."""

from __future__ import annotations

from typing import Any

import pytest

from roost.placement.model import Request
from roost.provisioners import request_options
from roost.provisioners.kernel_environment import limit_gpus
from roost.provisioners.request_options import OPTIONS, check_names, read_start_options
from roost.scheduler.backends.spec import BackendSpec, RequestOption
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import SERVICE_TIMEOUT


def test_no_options_promise_nothing() -> None:
    options = read_start_options({}, {})
    assert options.request == Request()
    assert options.launch_timeout_s == SERVICE_TIMEOUT


def test_options_are_read() -> None:
    options = {
        "cpus": 2, "memory": "8GiB", "gpus": 0.25, "gpu_models": ["A100", "H100"], "labels": {"zone": "a"},
        "near": {"rack": "7"}, "resources": {"licence": 1, "tpu": 0}, "tolerates": ["lab"], "policy": "pack",
        "launch_timeout": 5,
    }  # fmt: skip
    read = read_start_options(options, {})
    assert read.request == Request(
        cpus=2.0,
        memory_bytes=8 << 30,
        gpus=0.25,
        gpu_models=("A100", "H100"),
        labels={"zone": "a"},
        near={"rack": "7"},
        resources={"licence": 1.0},
        tolerates=("lab",),
        policy="pack",
    )
    assert read.launch_timeout_s == 5.0


def test_options_can_be_texts() -> None:
    options = read_start_options(
        {
            "cpus": "1.5",
            "memory": 1 << 30,
            "gpus": 1,
            "gpu_models": "A100, H100",
            "labels": "zone=a,disk=ssd",
        },
        {},
    )
    assert options.request.cpus == 1.5
    assert options.request.memory_bytes == 1 << 30
    assert options.request.gpu_models == ("A100", "H100")
    assert options.request.labels == {"zone": "a", "disk": "ssd"}


def test_the_kernels_environment_wins() -> None:
    env = {"KERNEL_CPUS": "3", "KERNEL_MEMORY": "1GiB", "KERNEL_GPUS": "2", "KERNEL_LAUNCH_TIMEOUT": "7"}
    options = read_start_options({"cpus": 1, "memory": "8GiB", "gpus": 1, "launch_timeout": 99}, env)
    assert (options.request.cpus, options.request.memory_bytes, options.request.gpus) == (3.0, 1 << 30, 2.0)
    assert options.launch_timeout_s == 7.0
    assert read_start_options({"cpus": 1}, {"KERNEL_CPUS": ""}).request.cpus == 1.0
    assert read_start_options({}, {"": "1"}).request == Request()
    options = read_start_options({"resources": {"tpu": 8}}, {"KERNEL_RESOURCES": "licence=1, tpu=0.5"})
    assert options.request.resources == {"licence": 1.0, "tpu": 0.5}


@pytest.mark.parametrize(("text", "cpus"), [("500m", 0.5), ("2500m", 2.5), (" 250m ", 0.25), ("0m", 0)])
def test_cpus_can_be_thousandths_as_in_kubernetes(text: str, cpus: float) -> None:
    assert read_start_options({"cpus": text}, {}).request.cpus == cpus
    assert read_start_options({"cpus": 9}, {"KERNEL_CPUS": text}).request.cpus == cpus


def test_memory_can_be_in_the_units_of_kubernetes() -> None:
    for text, size in (("2Gi", 2 << 30), ("512Mi", 512 << 20), ("65536Ki", 64 << 20), ("67108864", 64 << 20)):
        assert read_start_options({}, {"KERNEL_MEMORY": text}).request.memory_bytes == size


@pytest.mark.parametrize("backend", ["ssh", "kubernetes", "ray"])
def test_a_variable_names_the_node(backend: str) -> None:
    read = read_start_options(
        {"backend": backend, "labels": {"zone": "a"}}, {"KERNEL_REMOTE_HOST": " gpu-7 "}
    )
    assert read.request.labels == {"zone": "a", "node": "gpu-7"}
    assert read_start_options({"backend": backend}, {"KERNEL_REMOTE_HOST": ""}).request.labels == {}


@pytest.mark.parametrize(
    ("backend", "gpus", "expected"),
    [("local", 1, ("2",)), ("ssh", 0.5, ("2",)), ("local", 0, None), ("ray", 1, None)],
)
def test_gpus_are_those_that_the_kernels_variables_name(
    backend: str, gpus: float, expected: tuple[str, ...] | None
) -> None:
    limited = limit_gpus(Request(gpus=gpus), backend, {"CUDA_VISIBLE_DEVICES": "2"})
    assert limited.visible_gpus == expected
    assert limit_gpus(Request(gpus=gpus), backend, {}).visible_gpus is None


def test_the_local_backend_needs_no_name_for_this_machine() -> None:
    for host in ("localhost", "127.0.0.1"):
        assert read_start_options({}, {"KERNEL_REMOTE_HOST": host}).request == Request()
    assert read_start_options({}, {"KERNEL_REMOTE_HOST": "gpu-7"}).request.labels == {"node": "gpu-7"}
    ssh = read_start_options({"backend": "ssh"}, {"KERNEL_REMOTE_HOST": "localhost"})
    assert ssh.request.labels == {"node": "localhost"}


@pytest.mark.parametrize(
    ("options", "env", "said"),
    [
        ({"gpus": 1.5}, {}, "gpus must be at most 1 (a share of one GPU) or a whole number; got 1.5"),
        ({"gpus": -1}, {}, "gpus must not be negative; got -1"),
        ({"cpus": "many"}, {}, "cpus must be a number; got 'many'"),
        ({"cpus": float("nan")}, {}, "cpus"),
        ({"cpus": float("inf")}, {}, "cpus"),
        ({"cpus": True}, {}, "cpus"),
        ({"cpus": "twom"}, {}, "cpus = 'twom' is not possible: give CPUs such as 0.5 or 500m"),
        ({"cpus": "-500m"}, {}, "cpus must not be negative"),
        ({"cpus": "nanm"}, {}, "cpus must be a finite number"),
        ({"memory": "8 apples"}, {}, "memory"),
        ({"memory": -5}, {}, "memory = '-5' is not an amount of memory"),
        (
            {"memory": 1},
            {},
            "memory = 1 byte is too little for a kernel: give at least 16 MiB, for example 2GiB.",
        ),
        ({}, {"KERNEL_MEMORY": "1MiB"}, "KERNEL_MEMORY = 1 MiB is too little"),
        ({"labels": ["a"]}, {}, "labels"),
        ({"labels": {"a": 1}}, {}, "labels"),
        ({"near": {"a": 1}}, {}, "near"),
        ({"tolerates": 3}, {}, "tolerates"),
        (
            {"resources": ["licence"]},
            {},
            "resources must map names to amounts, for example {'licence': 1}; got ['licence']",
        ),
        ({"resources": {"licence": "many"}}, {}, "resources licence must be a number; got 'many'"),
        ({"resources": {"licence": -1}}, {}, "resources licence must not be negative; got -1"),
        (
            {},
            {"KERNEL_RESOURCES": "licence"},
            "KERNEL_RESOURCES 'licence' must be KEY=VALUE, for example licence=1",
        ),
        ({"gpu_models": {"a": 1}}, {}, "gpu_models"),
        ({"policy": 3}, {}, "policy"),
        ({"launch_timeout": 0}, {}, "launch_timeout"),
        ({}, {"KERNEL_GPUS": "1.5"}, "KERNEL_GPUS must be at most 1"),
        ({}, {"KERNEL_CPUS": "two"}, "KERNEL_CPUS must be a number; got 'two'"),
        (
            {},
            {"KERNEL_LAUNCH_TIMEOUT": "-3"},
            "KERNEL_LAUNCH_TIMEOUT = '-3' is not possible: give seconds above 0",
        ),
        ({}, {"KERNEL_MEMORY": "lots"}, "KERNEL_MEMORY"),
    ],
)
def test_an_impossible_value_is_one_sentence(options: dict[str, Any], env: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_start_options(options, env)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_names_the_known_ones() -> None:
    check_names(OPTIONS)
    with pytest.raises(ConfigError, match="named gpu: did you mean gpus"):
        check_names(["gpu"])
    with pytest.raises(ConfigError, match="named zzz") as caught:
        check_names(["zzz"])
    assert all(name in str(caught.value) for name in OPTIONS)


def test_options_of_the_backend_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = RequestOption(name="queue", kind=str, help="queue of the cluster", variable="KERNEL_QUEUE")
    cloud = BackendSpec(name="cloud", settings="a:RoostCloudBackend", create="a:b", request_options=(queue,))
    local = request_options.get_spec("local")
    monkeypatch.setattr(request_options, "get_spec", lambda name: cloud if name == "cloud" else local)
    config = {"backend": "cloud", "options": {"queue": "long"}}
    assert read_start_options(config, {}).request.options == {"queue": "long"}
    assert read_start_options(config, {"KERNEL_QUEUE": "short"}).request.options == {"queue": "short"}
    assert read_start_options({"backend": "cloud"}, {"KERNEL_QUEUE": "short"}).request.options == {
        "queue": "short"
    }
    assert read_start_options({}, {"KERNEL_QUEUE": "short"}).request.options == {}
    for wrong, says in (
        ({"backend": "cloud", "options": {"queu": "long"}}, "named queu: did you mean queue"),
        ({"backend": "cloud", "options": {"queue": 1}}, "queue = 1 must be text"),
        ({"backend": "cloud", "options": "queue"}, "options = 'queue' is not an object"),
        ({"options": {"queue": "long"}}, "the backend local has no options for requests"),
    ):
        with pytest.raises(ConfigError, match=says):
            read_start_options(wrong, {})


def test_the_memory_of_each_gpu() -> None:
    read = read_start_options({"gpus": 1, "gpu_memory": "40GiB"}, {})
    assert read.request == Request(gpus=1, gpu_memory_bytes=40 << 30)
    read = read_start_options({"gpus": 1, "gpu_memory": "40GiB"}, {"KERNEL_GPU_MEMORY": "80GiB"})
    assert read.request.gpu_memory_bytes == 80 << 30
    with pytest.raises(ConfigError, match="gpu_memory needs gpus"):
        read_start_options({"gpu_memory": "40GiB"}, {})


@pytest.mark.parametrize("asked", [{"gpus": 0.00003}, {"cpus": 1e-9}, {"resources": {"licence": 0.00005}}])
def test_an_amount_that_no_manager_counts_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is less than the smallest amount, 0\.0001"):
        read_start_options(asked, {})
