"""The limits on the resources that one user's kernels may have together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeAgent, fake_world, scheduler_on
from roost.launchers.protocol.messages import Lease, Owner, Reserve
from roost.placement.model import Request
from roost.scheduler.backends.agent_per_kernel import PodGrowth
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import other_schedulers
from roost.scheduler.core.caps import check_alone, check_beside, check_user, check_wait, with_defaults
from roost.scheduler.errors import ConfigError, LimitExceeded, NoNodeEver, NoNodeNow, NotAllowed

GIB = 1 << 30


def admit(
    request: Request, user: str, held: Mapping[str, Request], settings: Settings, kernel_name: str = ""
) -> None:
    """Check a request as the scheduler does."""
    check_user(user, kernel_name, settings)
    check_alone(request, user, settings)
    check_beside(request, user, held, settings)


@pytest.mark.parametrize(
    ("settings", "request_", "said"),
    [
        (Settings(max_cpus_per_kernel=2), Request(cpus=3), "asks for 3 CPUs, and max_cpus_per_kernel"),
        (
            Settings(max_gpus_per_kernel=0.5),
            Request(gpus=1),
            "asks for 1 GPU, and max_gpus_per_kernel allows 0.5 GPU: ask for less",
        ),
        (
            Settings(max_memory_per_kernel=GIB),
            Request(memory_bytes=2 * GIB),
            "asks for 2 GiB of memory, and max_memory_per_kernel allows 1 GiB",
        ),
        (
            Settings(max_cpus_per_user=3),
            Request(cpus=2),
            "ada would have 4 CPUs, .* another kernel \\(aaaaaaaa\\)",
        ),
        (
            Settings(max_gpus_per_user=1),
            Request(gpus=16),
            "one kernel asks for 16 GPUs, and max_gpus_per_user allows 1 GPU: ask for less\\.$",
        ),
        (
            Settings(max_kernels_per_user=1, max_gpus_per_kernel=2),
            Request(gpus=16),
            "one kernel asks for 16 GPUs, and max_gpus_per_kernel allows 2 GPUs: ask for less\\.$",
        ),
        (
            Settings(max_kernels_per_user=1),
            Request(),
            "ada has 1 kernel, .* allows 1: stop one first \\(aaaaaaaa\\)",
        ),
    ],
)
def test_a_cap_says_which_it_is_and_what_is_allowed(settings: Settings, request_: Request, said: str) -> None:
    held = {"aaaaaaaa-1": Request(cpus=2)}
    with pytest.raises(LimitExceeded, match=said) as caught:
        admit(request_, "ada", held, settings)
    cap = caught.value.fields["cap"]
    assert cap in Settings.class_traits(config=True)
    assert getattr(settings, cap) == caught.value.fields["allowed"]


@pytest.mark.parametrize(
    ("settings", "gpus", "is_never"),
    [
        (Settings(max_gpus_per_kernel=1), 2, True),
        (Settings(max_gpus_per_user=2), 2, False),
        (Settings(max_gpus_per_user=2), 3, True),
        (Settings(max_kernels_per_user=1), 1, False),
        (Settings(max_kernels_per_user=0), 1, True),
    ],
)
def test_a_cap_says_whether_the_request_could_ever_start(
    settings: Settings, gpus: float, is_never: bool
) -> None:
    """A cap that is used up now is no fault of the kernelspec."""
    with pytest.raises(LimitExceeded) as caught:
        admit(Request(gpus=gpus), "ada", {"a": Request(gpus=1)}, settings)
    assert caught.value.fields["is_never"] is is_never


@pytest.mark.parametrize(
    ("settings", "wait_s", "said"),
    [
        (
            Settings(max_queued_per_user=2),
            60,
            "ada has 2 starts in the queue, and max_queued_per_user allows 2",
        ),
        (
            Settings(max_queued=3),
            60,
            "all users together have 3 starts in the queue, and max_queued allows 3",
        ),
        (Settings(max_launch_timeout_s=60), 61, "may wait 61 s, and max_launch_timeout_s allows 60 s"),
    ],
)
def test_the_queue_has_caps(settings: Settings, wait_s: float, said: str) -> None:
    with pytest.raises(LimitExceeded, match=said):
        check_wait("ada", ["ada", "ada", "bob"], wait_s, settings)
    check_wait("bob", ["ada", "bob"], 60, settings)


async def test_the_queue_time_of_an_application_is_cut_to_the_cap(tmp_path: Path) -> None:
    """Nobody has asked for it, and a shorter `launch_timeout` would not help."""
    async with fake_world(tmp_path, cpus=1, settings=Settings(max_launch_timeout_s=1)) as w:
        w.backend.lies["here"] = lambda node: replace(node, cpus_promised=node.cpus)  # it is full
        with pytest.raises(NoNodeNow, match="waited 1 s"):
            await w.start("waits", cpus=1, launch_timeout_s=1.0, queue_timeout_s=3600.0)
        with pytest.raises(LimitExceeded, match="may wait 10 s, and max_launch_timeout_s allows 1 s"):
            await w.start("asks", cpus=1, launch_timeout_s=10.0, queue_timeout_s=3600.0)


async def test_starts_that_wait_count(tmp_path: Path) -> None:
    async with fake_world(tmp_path, cpus=1, settings=Settings(max_queued_per_user=1)) as w:
        await w.start("runs", cpus=1)
        waiting = w.start("waits", cpus=1)
        await w.told("queued", "waits")
        with pytest.raises(LimitExceeded, match="ada has 1 start in the queue"):
            await w.start("more", cpus=1)
        await w.scheduler.stop("runs", 0)
        assert (await waiting).state == "running"


def test_what_is_exactly_allowed_is_allowed() -> None:
    admit(Request(cpus=0.1), "ada", {"a": Request(cpus=0.2)}, Settings(max_cpus_per_user=0.3))
    over = {"a": Request(gpus=2)}
    admit(Request(cpus=1), "ada", over, Settings(max_gpus_per_user=1))


def test_who_is_denied_or_not_on_the_list_may_not() -> None:
    admit(Request(), "ada", {}, Settings(allowed_users=["ada"]))
    for settings in (Settings(denied_users=["eve"]), Settings(allowed_users=["ada"])):
        with pytest.raises(NotAllowed, match="'eve' may not"):
            admit(Request(), "eve", {}, settings)


@pytest.mark.parametrize(
    ("user", "kernel_name", "said"),
    [
        ("ada", "plain", ""),
        ("ada", "spark", "may not start kernels of the kernelspec 'spark'"),
        ("ada", "Spark", "may not start kernels of the kernelspec 'Spark'"),
        ("ada", "night", "may not start kernels of the kernelspec 'night'"),
        ("bob", "spark", ""),
        ("bob", "plain", "may not start kernels here"),
        ("bob", "night", "may not start kernels here"),
        ("bob", "", "may not start kernels here"),
        ("eve", "spark", "may not start kernels here"),
    ],
)
def test_a_kernelspec_has_users_of_its_own(user: str, kernel_name: str, said: str) -> None:
    """Its allowed users replace those of the service, and its denied users are added, as in Enterprise Gateway."""
    settings = Settings(
        allowed_users=["ada"],
        denied_users=["eve"],
        kernelspec_users={"Spark": {"allowed": ["bob", "eve"]}, "night": {"denied": ["ada"]}},
    )
    if not said:
        admit(Request(), user, {}, settings, kernel_name)
        return
    with pytest.raises(NotAllowed, match=said):
        admit(Request(), user, {}, settings, kernel_name)


async def test_the_scheduler_asks_for_the_kernelspec_at_starts_and_questions(tmp_path: Path) -> None:
    settings = Settings(kernelspec_users={"spark": {"allowed": ["bob"]}})
    async with fake_world(tmp_path, settings=settings) as w:
        with pytest.raises(NotAllowed, match="kernelspec 'SPARK'"):
            await w.start("a", kernel_name="SPARK")
        with pytest.raises(NotAllowed, match="kernelspec 'spark'"):
            await w.scheduler.explain(Request(), Owner(user="ada"), "spark")
        assert (await w.start("a", kernel_name="plain")).state == "running"
        w.agent.end("a")
        await w.told("exited")
        with pytest.raises(NotAllowed, match="kernelspec 'spark'"):
            await w.start("a", "2", kernel_name="spark")
        assert (await w.start("b", user="bob", kernel_name="spark")).state == "running"


def test_defaults_fill_what_is_not_asked_for() -> None:
    settings = Settings(default_cpus=1, default_memory=GIB, default_policy="pack")
    assert with_defaults(Request(cpus=2), settings) == Request(cpus=2, memory_bytes=GIB, policy="pack")


async def test_caps_hold_in_the_scheduler_and_are_by_user(tmp_path: Path) -> None:
    async with fake_world(tmp_path, settings=Settings(max_kernels_per_user=1)) as w:
        await w.start("a")
        with pytest.raises(LimitExceeded):
            await w.start("b")
        assert (await w.start("b", user="bob")).state == "running"
        w.agent.end("a")
        await w.told("exited")
        assert (await w.start("a", "2")).state == "running"
        await w.scheduler.stop("a", 0)
        assert (await w.start("c")).state == "running"


async def test_a_restart_in_its_lease_meets_no_lower_cap(tmp_path: Path) -> None:
    """It takes nothing, and its refusal would end the kernel."""
    agent = FakeAgent(tmp_path / "agent")
    async with scheduler_on([agent]) as w:
        for kernel_id in ("a", "b"):
            await w.start(kernel_id, cpus=1)
    lower = Settings(max_kernels_per_user=1, max_cpus_per_kernel=0.5)
    async with scheduler_on([agent], settings=lower) as w:
        agent.end("a")
        await w.told("exited", "a")
        assert (await w.start("a", "2", cpus=1)).state == "running"
        with pytest.raises(LimitExceeded, match=r"allows 0\.5 CPU"):
            await w.start("c", cpus=1)
    await agent.close()


async def test_a_request_that_no_node_could_hold_says_so_before_a_cap_that_is_used_up(tmp_path: Path) -> None:
    """The user would stop a kernel in vain."""
    async with fake_world(tmp_path, cpus=2, settings=Settings(max_kernels_per_user=1)) as w:
        ada = Owner(user="ada")
        await w.start("a")
        with pytest.raises(LimitExceeded, match="stop one first"):
            await w.scheduler.explain(Request(cpus=1), ada)
        decision = await w.scheduler.explain(Request(cpus=16), ada)
        assert decision["is_never"]
        assert "could ever hold 16 CPUs" in decision["reason"]
        with pytest.raises(NoNodeEver, match="could ever hold 16 CPUs"):
            await w.start("b", cpus=16)
        with pytest.raises(ConfigError, match="unknown policy 'gone'"):
            await w.scheduler.explain(Request(cpus=1, policy="gone"), ada)
        w.backend.growth = PodGrowth()  # the next node may hold it
        with pytest.raises(LimitExceeded, match="stop one first"):
            await w.scheduler.explain(Request(cpus=16), ada)
        with pytest.raises(LimitExceeded, match="stop one first"):
            await w.start("b", cpus=16)


async def test_kernels_of_another_service_on_the_cluster_count(tmp_path: Path) -> None:
    """A user's kernels of another service count too, since two spellings of an address make two services."""
    async with fake_world(tmp_path, cpus=8, settings=Settings(max_cpus_per_user=3)) as w:
        for user in ("ada", "bob"):
            lease = Lease(
                id=f"roost:{user}s:another/1",
                kernel_id=f"{user}s",
                owner=Owner(user=user),
                request=Request(cpus=2),
                node_id="here",
            )
            w.agent.ledger.reserve(Reserve(lease=lease))
        with pytest.raises(LimitExceeded, match=r"ada would have 4 CPUs, .*adas"):
            await w.start("a", cpus=2)
        assert (await w.start("b", cpus=1)).state == "running"


async def test_a_reading_of_other_services_serves_many_starts_but_refuses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_schedulers, "_AS_LONG", math.inf)
    monkeypatch.setattr(other_schedulers, "_MOST_S", math.inf)
    async with fake_world(tmp_path, cpus=8, settings=Settings(max_cpus_per_user=3)) as w:
        lease = Lease(
            id="roost:other:another/1",
            kernel_id="other",
            owner=Owner(user="ada"),
            request=Request(cpus=2),
            node_id="here",
        )
        w.agent.ledger.reserve(Reserve(lease=lease))
        w.agent.calls.clear()
        for user in ("bob", "eve", "bob"):
            await w.start(f"{user}s", user=user)
            await w.scheduler.stop(f"{user}s", 0)
        assert w.agent.calls.count("list") == 1
        with pytest.raises(LimitExceeded):
            await w.start("a", cpus=2)
        assert w.agent.calls.count("list") == 2
        w.agent.ledger.release(lease.id)
        assert (await w.start("a", cpus=2)).state == "running"
