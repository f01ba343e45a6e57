"""kill -9 of each part under kernels in pods: which kernels live on, which end, and for which reason."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.faults import assert_plain, say, until
from kit.clusters.kubelets import Api, Refused
from kit.clusters.kubernetes.faults import PODS, SECRETS, SPARE, USER, KubernetesWorld
from kit.clusters.kubernetes.shared_cluster import NAMESPACE
from kit.jupyter.notebook import held_by
from kit.machine.daemons import wait_gone
from roost.scheduler.errors import BackendUnavailable, RoostError
from roost.testing.deadlines import allow_s


async def test_the_service_while_a_pod_is_pending(kubernetes_world: KubernetesWorld) -> None:
    await kubernetes_world.service().up()
    kubernetes_world.cluster.pause("n2/kubelet")
    notebook = kubernetes_world.notebook(labels=SPARE)
    try:
        opening = asyncio.create_task(notebook.open())
        say(await kubernetes_world.waits_for("its"))
        lease = (await kubernetes_world.service().kernels())[0].lease_id
        for _ in range(2):
            kubernetes_world.kill_service()
            await kubernetes_world.kernel_of(notebook)  # asks again while the next service starts
            assert len(await kubernetes_world.service().kernels()) == 1
    finally:
        kubernetes_world.cluster.resume("n2/kubelet")
    await opening
    await notebook.run("mine = 42")
    await kubernetes_world.lives(notebook)
    assert (await kubernetes_world.kernel_of(notebook)).lease_id == lease


async def test_the_agent(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open()
    agent, *others = await kubernetes_world.processes(notebook)
    uid = (await kubernetes_world.pod(notebook))["metadata"]["uid"]
    killed_at = time.monotonic()
    agent.kill()
    assert all(wait_gone(process.pid, 2) for process in others)
    reason = await kubernetes_world.ended(notebook, 10)
    say(f"{reason!r} after", killed_at)
    assert "its agent ended with exit code 137" in reason
    await kubernetes_world.restart(notebook)
    assert (await kubernetes_world.pod(notebook))["metadata"]["uid"] != uid
    await kubernetes_world.lives(notebook)


async def test_a_pod_deleted_by_hand(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open()
    kernel = (await kubernetes_world.processes(notebook))[-1]
    deleted_at = time.monotonic()
    kubernetes_world.delete_pod(await kubernetes_world.pod(notebook))
    reason = await kubernetes_world.ended(notebook, 10)
    say(f"{reason!r} after", deleted_at)
    assert "its pod was deleted" in reason
    assert wait_gone(kernel.pid, 60)
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)


@pytest.mark.long
async def test_a_pod_deleted_while_the_service_restarts(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open(labels=SPARE)
    kubernetes_world.cluster.pause("n2/kubelet")  # else the pod might be gone before the next service looks
    try:
        kubernetes_world.delete_pod(await kubernetes_world.pod(notebook))
        kubernetes_world.kill_service()
        killed_at = time.monotonic()
        assert all(kernel.state == "exited" for kernel in await kubernetes_world.service().kernels())
        reason = await kubernetes_world.ended(notebook, 10)
        say(f"{reason!r} after", killed_at)
        assert "its pod was deleted" in reason
    finally:
        kubernetes_world.cluster.resume("n2/kubelet")
    await kubernetes_world.has_room(labels=SPARE)
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)


async def test_a_pod_that_is_gone_before_the_next_service_looks(
    kubernetes_world: KubernetesWorld, caplog: pytest.LogCaptureFixture
) -> None:
    notebook = await kubernetes_world.open()
    pod = await kubernetes_world.pod(notebook)
    kubernetes_world.pause_service()  # the notebook would start the next service at once, which might see the pod end
    kubernetes_world.delete_pod(pod)
    await until(
        lambda: not kubernetes_world.api.has(f"{PODS}/{pod['metadata']['name']}"), "the pod is removed"
    )
    kubernetes_world.kill_service()
    assert await kubernetes_world.service().kernels() == []
    await asyncio.wait_for(notebook.manager.provisioner.wait(), allow_s(30))
    assert "it ended while no service of roost was running, so nobody saw the cause" in caplog.text
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)


async def test_a_pod_deleted_while_the_watch_is_silent(kubernetes_world: KubernetesWorld) -> None:
    """The agent reports that its pod was ended. roost then asks Kubernetes for the reason, on a new connection."""
    kubernetes_world.configure(watch_timeout_s=5.0)
    notebook = await kubernetes_world.open()
    kubernetes_world.proxy.swallow()
    kubernetes_world.delete_pod(await kubernetes_world.pod(notebook))
    reason = await kubernetes_world.ended(notebook, 10)
    say(reason)
    assert "its pod was deleted" in reason


async def test_a_watch_that_falls_silent(kubernetes_world: KubernetesWorld) -> None:
    """A proxy drops the data of the open connections. New connections work."""
    kubernetes_world.configure(watch_timeout_s=2.0)
    notebook = await kubernetes_world.open()
    say(f"{kubernetes_world.proxy.swallow()} connections fall silent")
    silent_at = time.monotonic()
    for process in await kubernetes_world.processes(notebook):
        with contextlib.suppress(psutil.NoSuchProcess):  # the end of the first one ends the others
            process.kill()  # nobody but Kubernetes can report this
    reason = await kubernetes_world.ended(notebook, 20)
    say(f"{reason!r} after", silent_at)
    assert "its agent ended with exit code 137" in reason
    opened_at = time.monotonic()
    await kubernetes_world.open()
    say("next kernel after", opened_at)


@pytest.mark.long
async def test_the_kubelet(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open(labels=SPARE)
    kubernetes_world.cluster.kill("n2/kubelet")
    killed_at = time.monotonic()
    try:
        refusal = await kubernetes_world.refusal(labels=SPARE)
        say(f"{refusal!r} after", killed_at)
        assert "does not answer Kubernetes" in refusal
        await asyncio.sleep(2)
        await kubernetes_world.lives(notebook)
        await notebook.interrupt()
    finally:
        kubernetes_world.cluster.start("n2/kubelet")
    started_at = time.monotonic()
    await kubernetes_world.has_room(labels=SPARE)
    say("room again after", started_at)
    await kubernetes_world.lives(notebook, await kubernetes_world.open(labels=SPARE))


@pytest.mark.long
async def test_a_node_that_is_cut_off(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open(labels=SPARE)
    stopped = await kubernetes_world.open(labels=SPARE)
    cut_at = time.monotonic()
    kubernetes_world.cluster.cut("n2")
    try:
        refusal = await kubernetes_world.refusal(labels=SPARE)
        say(f"{refusal!r} after", cut_at)
        with pytest.raises(RoostError) as refused:
            await kubernetes_world.service().stop(stopped.manager.kernel_id, grace_s=0)
        say(refused.value.user_message)
        assert_plain(refused.value.user_message)
        await asyncio.sleep(max(0.0, cut_at + 20 - time.monotonic()))
        assert (await kubernetes_world.kernel_of(notebook)).state == "running"
        assert len(kubernetes_world.pods()) == 2
    finally:
        kubernetes_world.cluster.reconnect("n2")
    back_at = time.monotonic()
    await kubernetes_world.has_room(labels=SPARE)
    say("room again after", back_at)
    await until(lambda: len(kubernetes_world.pods()) == 1, "the stop is carried out")
    say("the stop was carried out after", back_at)
    await kubernetes_world.close_stopped(stopped)
    await kubernetes_world.lives(notebook)


@pytest.mark.long
async def test_a_node_that_loses_power(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open(labels=SPARE)
    off_at = time.monotonic()
    kubernetes_world.cluster.power_off("n2")
    try:
        refusal = await kubernetes_world.refusal(labels=SPARE)
        say(f"{refusal!r} after", off_at)
        await asyncio.sleep(max(0.0, off_at + 15 - time.monotonic()))
        assert (await kubernetes_world.kernel_of(notebook)).state == "running", "unknown is not ended"
        assert len(kubernetes_world.pods()) == 1
    finally:
        kubernetes_world.cluster.power_on("n2")
    on_at = time.monotonic()
    reason = await kubernetes_world.ended(notebook, 60)
    say(f"{reason!r} after", on_at)
    await kubernetes_world.has_room(labels=SPARE)
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)


@pytest.mark.long
async def test_eviction(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open()
    name = (await kubernetes_world.pod(notebook))["metadata"]["name"]
    budgets = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
    selector = {"matchLabels": {"app.kubernetes.io/managed-by": "roost"}}
    spec = {"minAvailable": 1, "selector": selector}
    kubernetes_world.api.call("POST", budgets, {"metadata": {"name": "kernels"}, "spec": spec})
    try:
        await until(
            lambda: (
                kubernetes_world.api.call("GET", f"{budgets}/kernels").get("status", {}).get("currentHealthy")
                == 1
            ),
            "the budget has an effect",
        )
        with pytest.raises(Refused, match="disruption budget") as refused:
            kubernetes_world.api.call("POST", f"{PODS}/{name}/eviction", evict(name))
        assert refused.value.status == 429
        await kubernetes_world.lives(notebook)
    finally:
        kubernetes_world.api.call("DELETE", f"{budgets}/kernels")
    kernel = (await kubernetes_world.processes(notebook))[-1]
    await until(lambda: accepts(kubernetes_world.api, name), "the eviction is accepted")
    evicted_at = time.monotonic()
    reason = await kubernetes_world.ended(notebook, 10)
    say(f"{reason!r} after", evicted_at)
    assert "it was evicted" in reason
    assert wait_gone(kernel.pid, 60)
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)


def evict(name: str) -> dict[str, Any]:
    return {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}


def accepts(api: Api, name: str) -> bool:
    api.call("POST", f"{PODS}/{name}/eviction", evict(name))
    return True


@pytest.mark.long
async def test_preemption(kubernetes_world: KubernetesWorld) -> None:
    notebook = await kubernetes_world.open(labels=SPARE, cpus=1)
    classes = "/apis/scheduling.k8s.io/v1/priorityclasses"
    kubernetes_world.api.call("POST", classes, {"metadata": {"name": "urgent"}, "value": 1_000_000})
    container = {
        "name": "main", "image": "roost-test:1", "command": ["sleep", "1000"],
        "resources": {"requests": {"cpu": "1500m"}},
    }  # fmt: skip
    spec = {
        "priorityClassName": "urgent", "nodeSelector": SPARE, "terminationGracePeriodSeconds": 0,
        "containers": [container],
    }  # fmt: skip
    path = "/api/v1/namespaces/default/pods"
    created_at = time.monotonic()
    kubernetes_world.api.call("POST", path, {"metadata": {"name": "urgent"}, "spec": spec})
    try:
        reason = await kubernetes_world.ended(notebook, 10)
        say(f"{reason!r} after", created_at)
        assert "a pod of higher priority took its place" in reason
        await until(
            lambda: kubernetes_world.api.call("GET", f"{path}/urgent")["status"]["phase"] == "Running",
            "the urgent pod runs",
        )
        say("the urgent pod runs after", created_at)
        assert "CPU" in await kubernetes_world.refusal(labels=SPARE, cpus=1)
    finally:
        kubernetes_world.api.call("DELETE", f"{path}/urgent")
        kubernetes_world.api.call("DELETE", f"{classes}/urgent")
    await kubernetes_world.has_room(labels=SPARE, cpus=1)
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)


@pytest.mark.long
async def test_out_of_memory(kubernetes_world: KubernetesWorld) -> None:
    """With cgroup v1 the system kills one process, and with cgroup v2 all processes of the container."""
    notebook = await kubernetes_world.open(memory="300MiB")
    before = await kubernetes_world.pod(notebook)
    died_at = time.monotonic()
    notebook.client.execute("x = bytearray(10**9)")
    reason = await kubernetes_world.ended(notebook, 20)
    say(f"{reason!r} after", died_at)
    if Path("/sys/fs/cgroup/memory").is_dir():
        assert reason == "the kernel was killed: it used 300 MiB of its 300 MiB of memory"
    else:
        assert reason.endswith("its container ran out of memory")
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)
    say(f"in {'the same' if await kubernetes_world.pod(notebook) == before else 'another'} pod")
    for process in await kubernetes_world.processes(notebook):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    died_at = time.monotonic()
    reason = await kubernetes_world.ended(notebook, 20)
    say(f"{reason!r} after", died_at)
    await kubernetes_world.restart(notebook)
    await kubernetes_world.lives(notebook)


@pytest.mark.long
async def test_a_token_that_expires(kubernetes_world: KubernetesWorld) -> None:
    """The token ends with the Secret that it is bound to. A new token appears in the same file."""
    kubernetes_world.configure(watch_timeout_s=2.0)
    token = kubernetes_world.folder / "token"
    config = json.loads(kubernetes_world.kubeconfig.read_text())
    config["users"][0]["user"] = {"tokenFile": str(token)}
    kubernetes_world.kubeconfig.write_text(json.dumps(config))
    create_token(kubernetes_world.api, "first", token)
    notebook = await kubernetes_world.open()
    kubernetes_world.api.call("DELETE", f"{SECRETS}/first")
    expired_at = time.monotonic()
    refusal = await kubernetes_world.refusal(cpus=0.1, within_s=30)
    say(f"{refusal!r} after", expired_at)
    assert "does not accept roost's credentials" in refusal
    assert await notebook.value("mine") == "42"
    create_token(kubernetes_world.api, "second", token)
    renewed_at = time.monotonic()
    await kubernetes_world.has_room(cpus=0.1)
    say("room again after", renewed_at)
    await kubernetes_world.lives(notebook, await kubernetes_world.open())
    await kubernetes_world.close()
    kubernetes_world.api.call("DELETE", f"{SECRETS}/second")


def create_token(api: Api, name: str, file: Path) -> None:
    """Write a token that is valid while a Secret of this name exists."""
    secret = api.call("POST", SECRETS, {"metadata": {"name": name}})
    bound = {"kind": "Secret", "apiVersion": "v1", "name": name, "uid": secret["metadata"]["uid"]}
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{USER}/token"
    answer = api.call("POST", path, {"spec": {"boundObjectRef": bound, "expirationSeconds": 600}})
    file.write_text(answer["status"]["token"])


@pytest.mark.long
@pytest.mark.parametrize("away_s", [3, 20])
async def test_the_api_server(kubernetes_world: KubernetesWorld, away_s: float) -> None:
    """Kill the API server. This test is the last one, because Kubernetes' own parts need a minute to recover."""
    kept, stopped = await kubernetes_world.open(gpus=1), await kubernetes_world.open()
    before = held_by(await kubernetes_world.kernel_of(kept))
    kubernetes_world.cluster.kill("apiserver")
    killed_at = time.monotonic()
    assert "Kubernetes is away, its kernels live on" in await kubernetes_world.refusal(cpus=0.1)
    say("known to be away after", killed_at)
    with pytest.raises(BackendUnavailable) as refused:
        await kubernetes_world.notebook().open()
    assert_plain(refused.value.user_message)
    assert await kept.value("mine") == "42"
    await kept.interrupt()
    ending = asyncio.create_task(stopped.manager.shutdown_kernel(now=True))
    await asyncio.sleep(killed_at + away_s - time.monotonic())
    assert await kept.value("mine") == "42"
    kubernetes_world.cluster.start("apiserver")
    say("back after", killed_at)
    back_at = time.monotonic()
    await kubernetes_world.has_room(cpus=0.1, within_s=120)  # Kubernetes' own nodes need a minute after 20 s
    say("room again after", back_at)
    with contextlib.suppress(RoostError):
        await ending
    await until(lambda: len(kubernetes_world.pods()) == 1, "the pod of the stopped kernel is removed")
    say("the stopped kernel's pod is gone after", back_at)
    await kubernetes_world.close_stopped(stopped)
    assert held_by(await kubernetes_world.kernel_of(kept)) == before
    await kubernetes_world.lives(kept)
    await kubernetes_world.restart(kept)
