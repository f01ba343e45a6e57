"""The examples of docs/policies.md run, and print what the page shows."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from roost.placement import Pipeline, Request, Snapshot, Workload
from roost.placement.shipped_policies import SHIPPED, build_policy

DOCS = Path(__file__).parents[4] / "docs"
BLOCK = re.compile(r"```(python|toml|)\n(.*?)```\n", re.DOTALL)


def test_the_page_runs() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    said = ""
    compared = 0
    page = (DOCS / "policies.md").read_text()
    for language, text in BLOCK.findall(page):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, "policies.md", "exec"), names)
            said = out.getvalue()
        elif language == "" and not text.startswith("$"):
            assert text == said
            compared += 1
    assert compared == 4
    for name in ("first_gpu_last", "ByTeam", "FirstThatIsQuiet", "few_of_one_user", "PACK_FIRST_GPU_LAST"):
        own = build_policy(names[name], name)
        decision = own.place(Request(gpus=0.5, owner="student-1"), names["cluster"])
        assert decision.placement is not None
    half = names["first_gpu_last"](Workload()).place(Request(gpus=0.5), names["cluster"])
    assert half.placement.device_ids == ("1",)
    assert names["PACK_FIRST_GPU_LAST"].place(Request(gpus=0.5), names["cluster"]).placement.device_ids == (
        "1",
    )
    assert all(isinstance(build(Workload()), Pipeline) for build in SHIPPED.values())
    shipped = page.split("## The shipped policies")[1]
    assert set(re.findall(r"^\| `(\w+)` \|", shipped, re.MULTILINE)) == set(SHIPPED)


def test_the_examples_are_the_page_s() -> None:
    blocks = [text for _, text in BLOCK.findall((DOCS / "policies.md").read_text())]
    assert blocks[0].strip() in (DOCS / "examples" / "first_gpu_last.py").read_text()
    (few,) = (text for text in blocks if "class FewOfOneUser" in text)
    policy = few.partition("MOST = 3")[2].partition("shared = Node")[0].strip()
    assert policy in (DOCS / "examples" / "few_of_one_user.py").read_text()


def test_it_prefers_the_other_gpus_whatever_their_number() -> None:
    names: dict[str, Any] = {}
    exec((DOCS / "examples" / "first_gpu_last.py").read_text(), names)
    own = names["FIRST_GPU_LAST"]
    assert own.place(Request(cpus=1), Snapshot.of([])).placement is None
