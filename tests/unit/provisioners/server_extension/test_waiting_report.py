"""The text that names the kernels whose end a waiting start needs."""

from __future__ import annotations

from roost.provisioners.server_extension.waiting_report import describe_soonest


def a_kernel(kernel_id: str, since: float | None) -> dict[str, object]:
    return {"id": kernel_id, "user": "ada", "since": since}


def test_one_kernel_whose_end_makes_room() -> None:
    soonest = {"node_id": "gpu-3", "kernels": [a_kernel("50fe0e35-35df", 1_000.0)]}
    expected = "There is room on gpu-3 when kernel 50fe0e35 of ada (running for 12 min) ends."
    assert describe_soonest(soonest, 1_720.0) == expected
    soonest["kernels"] = [a_kernel("50fe0e35-35df", None)]
    assert describe_soonest(soonest, 0.0) == "There is room on gpu-3 when kernel 50fe0e35 of ada ends."


def test_many_kernels_whose_end_makes_room() -> None:
    kernels = [a_kernel(f"{number}aaaaaaaa", 0.0) for number in range(5)]
    text = describe_soonest({"node_id": "n", "kernels": kernels}, 7_200.0)
    named = ", ".join(f"{number}aaaaaaa of ada (running for 2 h)" for number in range(3))
    assert text == f"There is room on n when these kernels end: {named} and 2 more."
