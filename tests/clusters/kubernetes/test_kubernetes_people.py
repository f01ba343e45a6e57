"""Two people through `roost gateway`: each one's kernels are pods of her own namespace."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.clusters.kubelets import Kubelets
from kit.clusters.kubernetes.shared_cluster import cluster_settings
from kit.jupyter.gateway_process import a_laptop, add_token, run_cell, serve, start, until_it_serves
from kit.jupyter.kernelspecs import IPYKERNEL, kernelspecs
from kit.machine.daemons import settle
from roost.scheduler.client.client import connect, disconnect
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until_blocking

PEOPLE = ("ada", "eve")
UID = "23456"
FORCED = f"""
c.RoostGateway.user_variables = {{"KERNEL_NAMESPACE": "nb-{{user}}", "KERNEL_UID": "{UID}"}}
"""


@pytest.fixture
def folder(
    kubernetes_cluster: Kubelets, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Yield the gateway's folder. Each person has a namespace. All kernels end with the test."""
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    allowed = {"allowed_namespaces": ["nb-*"], "allowed_uids": [UID]}
    settings = {**cluster_settings(kubernetes_cluster, tmp_path), **allowed}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps({"RoostKubernetesBackend": settings}))
    kernelspecs(tmp_path, "roosted", backend="kubernetes", argv=["python3", *IPYKERNEL[1:]])
    api = kubernetes_cluster.api
    for person in PEOPLE:
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": f"nb-{person}"}})
    accounts = [f"/api/v1/namespaces/nb-{person}/serviceaccounts/default" for person in PEOPLE]
    until_blocking(lambda: all(map(api.has, accounts)), "the namespaces have accounts", 20, 0.2)
    yield tmp_path
    for kernel in connect("kubernetes").kernels().result(allow_s(30)):
        connect("kubernetes").stop(kernel.id).result(allow_s(60))
    disconnect()
    settle(runtime_dir)
    for person in PEOPLE:
        api.call("DELETE", f"/api/v1/namespaces/nb-{person}")


async def test_each_person_has_pods_of_her_own_namespace(folder: Path, kubernetes_cluster: Kubelets) -> None:
    """After each of five gateways that are killed, both have their kernels and variables."""
    port = free_port()
    people = {person: a_laptop(port, await add_token(person)) for person in PEOPLE}
    kernels: dict[str, str] = {}
    for turn in range(6):
        async with serve(folder, port, turn + 1, more=FORCED) as gateway:
            await until_it_serves(gateway, port)
            for person, laptop in people.items():
                if turn == 0:
                    forged = {"KERNEL_NAMESPACE": "kube-system", "KERNEL_UID": "0"}  # changes nothing
                    kernels[person] = await start(laptop, **forged)
                    said = await run_cell(
                        laptop, kernels[person], f"who = {person!r}; import os; print(os.getuid())"
                    )
                    assert said == f"{UID}\n"
                listed = kubernetes_cluster.api.call("GET", f"/api/v1/namespaces/nb-{person}/pods")["items"]
                assert len(listed) == 1
                assert kernels[person] in str(listed[0]["metadata"])
                assert [each["id"] for each in (await laptop.api("GET", "kernels"))[1]] == [kernels[person]]
                assert await run_cell(laptop, kernels[person], "print(who)") == f"{person}\n"
            await gateway.end(signal.SIGKILL)
