"""The findings and the repairs of `roost doctor` on the scheduler's side."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.fakes.scheduler import fake_world
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import diagnosis

SOON = Settings(claim_grace_s=0.05, owner_grace_s=0.05, orphan_after_s=0.3)


async def test_doctor_names_what_nodes_were_set_to_do_and_cannot_do(tmp_path: Path) -> None:
    async with fake_world(tmp_path, nodes=("a", "b", "c", "d", "e")) as w:
        for agent in w.fakes:
            agent.problems = ("jedi is not preloaded",)
        w.fakes[0].problems += ("idle kernels are not paged out",)
        for agent in w.fakes:
            agent.report_status()
        found = {}
        while len(found) < 2 or "and 2 more" not in " ".join(found):
            found = {each["what"]: each for each in await w.scheduler.doctor() if each["level"] == "warning"}
        preloads, swap = sorted(found, key=len, reverse=True)
        assert preloads == "on a, b, c and 2 more, jedi is not preloaded"
        assert swap == "on a, idle kernels are not paged out"
        assert found[swap]["do"].startswith("correct the setting or the machine")


async def test_doctor_finds_policies_that_cannot_be_used(tmp_path: Path) -> None:
    named = {"mine": "no_such_module:Mine", "other": "pack"}
    async with fake_world(tmp_path, settings=SOON.with_values(policies=named, default_policy="gone")) as w:
        w.scheduler.policies.failed["hers"] = "did not answer within 1 s"
        default, mine, hers = await w.scheduler.doctor()
        assert [found["level"] for found in (default, mine, hers)] == ["error", "error", "warning"]
        assert default["what"].startswith("c.RoostScheduler.default_policy: unknown policy 'gone'; known are")
        assert mine["what"].startswith("c.RoostScheduler.policies['mine']: ")
        assert "no_such_module" in mine["what"]
        assert hers["what"] == "policy hers did not answer within 1 s"


async def test_doctor_names_a_task_of_the_service_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path) as w:
        monkeypatch.setattr(diagnosis, "list_failures", lambda: {"the look at idle kernels": "KeyError: 'k'"})
        (found,) = await w.scheduler.doctor()
        assert found["level"] == "error"
        assert found["what"] == "the look at idle kernels fails, and is tried again (KeyError: 'k')"


async def test_doctor_finds_and_repairs_only_if_asked(tmp_path: Path) -> None:
    async with fake_world(tmp_path, settings=SOON) as w:
        assert (await w.scheduler.doctor())[0]["what"] == "0 kernels, 0 leases and 0 processes agree"
        await w.start("k", cpus=1)
        assert (await w.scheduler.doctor())[0]["what"] == "1 kernel, 1 lease and 1 process agree"
        await w.start("ended")
        w.agent.end("ended")
        await w.told("exited", "ended")
        said = "2 kernels (1 ended), 2 leases and 1 process agree"
        assert (await w.scheduler.doctor())[0]["what"] == said
        await w.scheduler.stop("ended", 0)
        w.agent.ledger.release("roost:k:s/1")  # behind everybody's back
        for _ in range(2):
            (found,) = await w.scheduler.doctor()
            assert found["what"] == "kernel k has lost its lease"
            assert (found["level"], found["fix"]) == ("error", "the kernel is dropped")
        assert [kernel.id for kernel in w.scheduler.kernels()] == ["k"]
        fixed, agree = await w.scheduler.doctor(fix=True)
        assert (fixed["level"], fixed["what"], fixed["fix"]) == ("fixed", found["what"], found["fix"])
        assert agree["level"] == "ok"
        assert w.scheduler.kernels() == []


async def test_doctor_repairs_the_other_side_too(tmp_path: Path) -> None:
    """The doctor removes a lease that has no kernel, and a kernel that has no process."""
    async with fake_world(tmp_path, settings=SOON, cpus=4) as w:
        await w.start("k", cpus=1)
        await w.start("gone", cpus=1)
        del w.scheduler._table.records["k"]
        del w.agent.kernels["gone"]
        fixed = (await w.scheduler.doctor(fix=True))[:2]
        assert [found["what"] for found in fixed] == [
            "lease roost:k:s/1 has no kernel",
            "kernel gone is listed but does not run",
        ]
        assert {found["level"] for found in fixed} == {"fixed"}
        assert w.leases() == []
        assert w.scheduler.kernels() == []


async def test_doctor_says_what_it_could_not_repair(tmp_path: Path) -> None:
    async with fake_world(tmp_path, settings=SOON) as w:
        await w.start("k", cpus=1)
        del w.scheduler._table.records["k"]
        w.agent.fail("release")
        failed, still = (await w.scheduler.doctor(fix=True))[:2]
        assert failed["level"] == still["level"] == "error"
        assert failed["do"].startswith("it cannot be repaired: ")
        w.agent.failures.clear()
