"""The GPUs that an application may use, as its variables name them."""

from __future__ import annotations

import pytest

from roost.placement import Device
from roost.placement.model.visible_gpus import (
    describe_visible_gpus,
    is_visible,
    list_visible_gpus,
    name_gpus,
    show_gpus,
)

CUDA, HIP, ROCR, OPENCL = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)


@pytest.mark.parametrize(
    ("env", "visible"),
    [
        ({}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "2"}, None),
        ({CUDA: "2,3"}, ("2", "3")),
        ({CUDA: " 2 , 02,3"}, ("2", "3")),
        ({CUDA: "GPU-2,MIG-1"}, ("GPU-2", "MIG-1")),
        ({CUDA: ""}, ()),
        ({CUDA: "-1"}, ()),
        ({CUDA: "NoDevFiles"}, ()),
        ({CUDA: "0,-1,1"}, ("0",)),
        ({CUDA: "²"}, ()),
        ({HIP: "1", ROCR: "2"}, ("1",)),
        ({ROCR: "2"}, ("2",)),
        ({OPENCL: "3"}, ("3",)),
        ({OPENCL: "3", CUDA: ""}, ()),
    ],
)
def test_a_variable_names_gpus_as_cuda_reads_it(env: dict[str, str], visible: tuple[str, ...] | None) -> None:
    assert list_visible_gpus(env) == visible


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2", True),
        ("1", False),
        ("22", False),
        ("MIG-7a", True),
        ("MIG-7a01", True),
        ("MIG-7b", False),
        ("GPU-2a", True),
        ("7", False),
    ],
)
def test_a_slice_is_named_by_its_uuid_or_by_its_gpu(name: str, expected: bool) -> None:
    device = Device(id="MIG-7a01", names=("2", "GPU-2a00"))
    assert is_visible(device, [name]) is expected
    assert is_visible(device, None)
    assert not is_visible(device, [])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {CUDA: "b"}),
        ({CUDA: "a,b", "LANG": "C"}, {CUDA: "b", "LANG": "C"}),
        ({CUDA: "a,b", OPENCL: "a,b", ROCR: "a,b"}, {CUDA: "b", OPENCL: "b"}),
        ({HIP: "a,b"}, {CUDA: "b", HIP: "b"}),
        ({ROCR: "a,b", OPENCL: "0"}, {ROCR: "b"}),
    ],
)
def test_a_kernel_sees_its_devices_by_each_variable(before: dict[str, str], after: dict[str, str]) -> None:
    shown = show_gpus(before, ["b"])
    del shown["ROOST_APPLICATION_GPUS"]
    assert shown == after


@pytest.mark.parametrize("ids", [["GPU-2"], []])
@pytest.mark.parametrize("env", [{}, {CUDA: "2,3"}, {CUDA: ""}, {ROCR: "1"}])
def test_a_kernel_of_a_kernel_may_use_what_their_application_may_use(
    env: dict[str, str], ids: list[str]
) -> None:
    inner = show_gpus(show_gpus(env, ids), ids)
    assert list_visible_gpus(inner) == list_visible_gpus(env)
    assert list_visible_gpus({**inner, CUDA: "7", ROCR: "7"}) == ("7",), "the kernel itself has changed it"


def test_gpus_are_named_in_a_sentence() -> None:
    assert describe_visible_gpus({}) == ""
    assert describe_visible_gpus({CUDA: ""}) == f"{CUDA} lets kernels use these GPUs alone: none"
    assert describe_visible_gpus({HIP: "2,3"}) == f"{HIP} lets kernels use these GPUs alone: 2, 3"
    assert name_gpus(list("123")) == "1, 2, 3"
