"""The findings and the repairs of `roost doctor` on the scheduler's side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.client_policies import install_package
from kit.fakes.scheduler import fake_world
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.base import LeaseReading
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import diagnosis
from roost.scheduler.errors import ConfigError, NoNodeEver
from roost.scheduler.policies import sandbox
from roost.testing import FakeBackend
from roost.testing.deadlines import allow_s

LEASE = Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(), node_id="")
SOON = Settings(claim_grace_s=0.05, owner_grace_s=0.05, orphan_after_s=0.3)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a policy load as long as a busy machine takes."""
    monkeypatch.setattr(sandbox, "LOAD_S", allow_s(60.0))


async def test_doctor_names_what_nodes_were_set_to_do_and_cannot_do(tmp_path: Path) -> None:
    async with fake_world(tmp_path, nodes=("a", "b", "c", "d", "e")) as w:
        for agent in w.fakes:
            agent.problems = ("jedi is not preloaded",)
        w.fakes[0].problems += ("kernels are not forked",)
        for agent in w.fakes:
            agent.report_status()
        found = {}
        while len(found) < 2 or "and 2 more" not in " ".join(found):
            found = {each["what"]: each for each in await w.scheduler.doctor() if each["level"] == "warning"}
        preloads, forks = sorted(found, key=len, reverse=True)
        assert preloads == "on a, b, c and 2 more, jedi is not preloaded"
        assert forks == "on a, kernels are not forked"
        assert found[forks]["do"].startswith("correct the setting or the machine")


async def test_doctor_finds_policies_that_cannot_be_used(tmp_path: Path) -> None:
    named = {"mine": "no_such_module:Mine", "other": "pack"}
    async with fake_world(tmp_path, settings=SOON.with_values(policies=named, default_policy="gone")) as w:
        w.scheduler.policies.failed["hers"] = "did not answer within 1 s"
        default, mine, hers, agree = await w.scheduler.doctor()
        assert [found["level"] for found in (default, mine, hers)] == ["error", "error", "warning"]
        assert agree["what"] == "0 kernels, 0 leases and 0 processes agree", "the settings are another matter"
        assert default["what"].startswith("c.RoostScheduler.default_policy: unknown policy 'gone'; known are")
        assert mine["what"].startswith("c.RoostScheduler.policies['mine']: ")
        assert "no_such_module" in mine["what"]
        assert hers["what"] == "policy hers did not answer within 1 s"


async def test_a_refusal_for_a_policy_names_the_setting(tmp_path: Path) -> None:
    named = {"mine": "no_such_module:Mine"}
    async with fake_world(tmp_path, settings=SOON.with_values(policies=named, default_policy="gone")) as w:
        for policy, setting in {
            "": "c.RoostScheduler.default_policy",
            "mine": "c.RoostScheduler.policies['mine']",
            "other": "",
        }.items():
            with pytest.raises(ConfigError) as refused:
                await w.scheduler.explain(Request(policy=policy), Owner(user="ada"))
            assert refused.value.fields == {"policy": policy or "gone", "setting": setting}


async def test_doctor_names_a_broken_policy_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_package(tmp_path, broken="no_such_module:MINE", well="their_policy:MINE")
    policy = "from roost.placement import get_policy\nMINE = get_policy('pack')\n"
    (tmp_path / "their_policy.py").write_text(policy)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with fake_world(tmp_path / "world") as w:
        (found,) = [each for each in await w.scheduler.doctor() if each["level"] != "ok"]
        assert found["level"] == "warning"
        assert found["what"].startswith("policy 'broken': ")
        assert "no_such_module" in found["what"]
        assert "roost.policies" in found["do"]


async def test_doctor_names_a_task_of_the_service_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path) as w:
        monkeypatch.setattr(diagnosis, "list_failures", lambda: {"the look at idle kernels": "KeyError: 'k'"})
        found, agree = await w.scheduler.doctor()
        assert agree["level"] == "ok"
        assert found["level"] == "error"
        assert found["what"] == "the look at idle kernels fails, and is tried again (KeyError: 'k')"


async def test_kernels_in_the_queue_are_counted_apart(tmp_path: Path) -> None:
    async with fake_world(tmp_path, cpus=1) as w:
        await w.start("k", cpus=1)
        waiting = w.start("other", cpus=1)
        await w.told("queued", "other")
        (agree,) = await w.scheduler.doctor()
        assert agree["what"] == "2 kernels (1 in the queue), 1 lease and 1 process agree"
        waiting.cancel()


async def test_a_node_that_has_left_lately_is_named_once_and_with_a_request_that_no_node_could_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path) as w:
        never = Request(labels={"on": "b"})
        assert (await w.scheduler.explain(never, Owner(user="ada")))["left"] == ""
        monkeypatch.setattr(w.backend, "left_nodes", lambda: {"b": 20.0})
        found = await w.scheduler.doctor()
        assert [each["what"] for each in found if each["level"] == "warning"] == [
            "node b has left the cluster 20 s ago"
        ]
        decision = await w.scheduler.explain(never, Owner(user="ada"))
        assert decision["is_never"]
        assert decision["left"] == "lately left the cluster: b 20 s ago"
        assert not any("waiting" in remedy for remedy in decision["remedies"])
        with pytest.raises(NoNodeEver, match=r"lately left the cluster: b 20 s ago\. Start it again"):
            await w.start("k", labels={"on": "b"})
        assert "left" not in await w.scheduler.explain(Request(), Owner(user="ada"))


async def test_a_node_that_has_left_the_cluster_is_no_error_of_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path) as w:
        lost = replace(LEASE, kernel_id="k", state="lost", reason="its node b has left the cluster")
        others = [replace(LEASE, id=f"roost:{name}:other/1", kernel_id=name) for name in ("m", "n")]
        silent = LeaseReading(leases=(lost, *others), unreachable=frozenset({"gone", "here"}))

        async def leases() -> LeaseReading:
            return silent

        monkeypatch.setattr(w.backend, "leases", leases)
        found = {each["what"]: each["level"] for each in await w.scheduler.doctor()}
        assert found["node gone has left the cluster, and its agent does not answer"] == "warning"
        assert found["1 kernel will end: its node b has left the cluster"] == "warning"
        assert found["the agent on here does not answer"] == "error"
        w.backend.lies["here"] = lambda node: replace(
            node, is_draining=True, drains_because="its raylet has ended"
        )
        closed = {each["what"]: each["level"] for each in await w.scheduler.doctor()}
        assert not [what for what in {**found, **closed} if what.endswith(" agree")], "an agent is silent"
        assert closed["the agent on here does not answer: its raylet has ended"] == "warning"
        assert "the agent on here does not answer" not in closed
        assert not [what for what in found if "agent on gone" in what or "agent on roost:" in what]


async def test_the_agent_of_a_start_under_way_may_be_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path) as w:
        w.agent.hold("launch")
        start = w.start("k", cpus=1)
        await w.told("leased", "k")
        lease = w.scheduler._table.records["k"].lease
        assert lease is not None
        assert lease.state == "held"

        async def leases() -> LeaseReading:
            return LeaseReading(leases=(lease,))

        async def ask_agent(*_: object) -> None:
            return None

        monkeypatch.setattr(w.backend, "leases", leases)
        monkeypatch.setattr(w.scheduler._access, "ask_agent", ask_agent)
        silent = [each["what"] for each in await w.scheduler.doctor() if "agent" in each["what"]]
        assert silent == []
        w.agent.held["launch"].set()
        await start
        silent = [each["what"] for each in await w.scheduler.doctor() if "agent" in each["what"]]
        assert silent == ["the agent on here does not answer"]


async def test_doctor_names_nodes_that_the_manager_has_closed(tmp_path: Path) -> None:
    async with fake_world(tmp_path, nodes=("a", "b")) as w:
        w.backend.lies["b"] = lambda node: replace(
            node, is_draining=True, drains_because="Ray is draining it"
        )
        found = await w.scheduler.doctor()
        (closed,) = [each for each in found if each["level"] == "not now"]
        assert closed["what"] == "no kernel starts on b: Ray is draining it"
        assert "0 kernels, 0 leases and 0 processes agree" in [each["what"] for each in found]


async def test_a_drained_node_that_is_not_there_says_so(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        w.scheduler._access.draining = {"my node"}
        found, agree = await w.scheduler.doctor()
        assert agree["what"] == "0 kernels, 0 leases and 0 processes agree", (
            "a drained node is no disagreement"
        )
        assert found["what"] == "node my node drains, and is not in the cluster now"
        assert found["do"] == "run `roost drain 'my node' --off` to use it again"


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


async def test_doctor_leaves_a_lease_without_a_kernel_to_its_silent_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its release is under way, and `--fix` would wait for the agent."""
    async with fake_world(tmp_path, settings=SOON) as w:
        await w.start("k", cpus=1)
        reading = replace(await w.backend.leases(), unanswered=frozenset({"roost:k:s/1"}))

        async def silent() -> LeaseReading:
            return reading

        with monkeypatch.context() as patched:
            patched.setattr(w.backend, "leases", silent)
            del w.scheduler._table.records["k"]
            found = [each["what"] for each in await w.scheduler.doctor(fix=True)]
        assert "the agent on here does not answer" in found
        assert not any("has no kernel" in what for what in found)
        assert w.leases() == ["roost:k:s/1"]


async def test_a_question_waits_until_it_is_known_whether_waiting_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that has just started may not have read yet which nodes can come."""
    never, looks = Request(labels={"on": "b"}), [True] * 6

    async with fake_world(tmp_path) as w:
        monkeypatch.setattr(FakeBackend, "is_still_reading", property(lambda _: bool(looks) and looks.pop()))
        assert (await w.scheduler.explain(Request(), Owner(user="ada")))["placement"]
        assert len(looks) == 5, "only the snapshot has looked"
        assert (await w.scheduler.explain(never, Owner(user="ada")))["is_never"]
        assert not looks
        looks += [True] * 100_000
        monkeypatch.setattr("roost.scheduler.core.scheduler._LOOKS", 3)
        assert not (await w.scheduler.explain(never, Owner(user="ada")))["is_never"]
