"""The page `/roost` of a real Jupyter Server, and what JupyterLab asks about kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server import JupyterServer, jupyter_server
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.restarted_servers import none_is_left
from kit.machine.daemons import settle
from roost.scheduler.client.client import connect, disconnect
from roost.scheduler.client.running_services import find_services
from roost.testing.deadlines import until

EXTENSION = "--ServerApp.jpserver_extensions={'roost': True}"
QUIET = "--RoostExtension.warm_up=False"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def gpu_folder(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_environment: None
) -> Iterator[Path]:
    """Return a folder for notebooks, on a machine with one GPU and a kernelspec `gpu` that asks for it."""
    gpus = {"RoostLocalBackend": {"gpus": 1, "gpu_model": HOSTILE, "cpus": 8, "memory": "64GiB"}}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps(gpus))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    kernelspecs(tmp_path, "gpu", config={"gpus": 1})
    yield tmp_path
    disconnect()
    settle(runtime_dir)


async def get(server: JupyterServer, path: str, *, has_token: bool = True) -> HTTPResponse:
    headers = {"Authorization": f"token {server.token}"} if has_token else {}
    url = f"http://127.0.0.1:{server.port}/{path}"
    return await AsyncHTTPClient().fetch(url, headers=headers, raise_error=False)


async def read_clusters(server: JupyterServer) -> list[dict[str, Any]]:
    answer = await get(server, "roost/api/clusters")
    assert answer.code == 200, "\n".join(server.log)
    clusters: list[dict[str, Any]] = json.loads(answer.body)["clusters"]
    return clusters


async def test_the_page_shows_nodes_kernels_and_the_queue(gpu_folder: Path) -> None:
    async with jupyter_server(gpu_folder, options=(EXTENSION, QUIET)) as server:
        assert await read_clusters(server) == []
        assert find_services() == []  # looking starts no service
        holder, waiting = [(await server.api("POST", "kernels", {"name": "gpu"}))[1]["id"] for _ in range(2)]
        cluster: dict[str, Any] = {}
        kernels: dict[str, dict[str, Any]] = {}

        async def is_whole() -> bool:
            nonlocal cluster, kernels
            cluster = next(iter(await read_clusters(server)), {"kernels": []})
            kernels = {kernel["id"]: kernel for kernel in cluster["kernels"]}
            return bool(
                kernels.get(holder, {}).get("state") == "running"
                and kernels.get(waiting, {}).get("waits_for")
                and cluster["nodes"][0]["kernels"] == 1  # it is read before the kernels
            )

        await until(is_whole, lambda: f"the page shows both kernels: {cluster}", 30, 0.1)
        (node,) = cluster["nodes"]
        assert (cluster["backend"], cluster["problem"], node["kernels"]) == ("local", "", 1)
        assert [(gpu["model"], gpu["promised"]) for gpu in node["devices"]] == [(HOSTILE, 1.0)]
        assert (kernels[holder]["devices"], kernels[waiting]["position"]) == (["0"], 1)
        assert kernels[waiting]["request"] == "1 GPU"
        for kernel_id in (waiting, holder):
            await server.api("DELETE", f"kernels/{kernel_id}")
        await none_is_left()


async def test_only_users_of_the_server_see_the_page_and_its_files(gpu_folder: Path) -> None:
    async with jupyter_server(gpu_folder, options=(EXTENSION, QUIET)) as server:
        page = await get(server, "roost")
        assert (page.code, page.effective_url.endswith("/roost/")) == (200, True)
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        for name in ("page.css", "page.js"):
            assert name.encode() in page.body
            assert (await get(server, f"roost/{name}")).code == 200
        assert (await get(server, "roost/other.js")).code == 404
        assert (await get(server, "roost/api/clusters", has_token=False)).code == 403
        assert b"page.js" not in (await get(server, "roost/", has_token=False)).body


async def test_the_status_of_kernels(gpu_folder: Path) -> None:
    kernelspecs(
        gpu_folder, "plain", metadata={"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    )
    async with jupyter_server(gpu_folder, options=(EXTENSION, QUIET)) as server:

        async def read_status(kernel_id: str) -> Any:
            answer = await get(server, f"roost/api/kernels/{kernel_id}")
            assert answer.code == 200, "\n".join(server.log)
            return json.loads(answer.body)

        names = ("gpu", "gpu", "plain")
        holder, waiting, plain = [
            (await server.api("POST", "kernels", {"name": name}))[1]["id"] for name in names
        ]

        async def are_known() -> bool:
            texts = [(await read_status(each))["text"] for each in (holder, waiting)]
            return "1 GPU" in texts[0] and "position 1" in texts[1]

        await until(are_known, "one kernel has the GPU, and the other one waits for it", 30, 0.1)
        assert await read_status(plain) == {"text": "", "detail": ""}
        assert (await get(server, "roost/api/kernels/none")).code == 404
        assert (await get(server, f"roost/api/kernels/{holder}", has_token=False)).code == 403
        assert (await get(server, "roost/api/cards", has_token=False)).code == 403
        cards = json.loads((await get(server, "roost/api/cards")).body)["cards"]
        assert cards == [{"title": "gpu", "text": "1 GPU"}]
        for kernel_id in (waiting, holder, plain):
            await server.api("DELETE", f"kernels/{kernel_id}")


async def test_a_service_that_does_not_answer_is_one_sentence(gpu_folder: Path) -> None:
    async with jupyter_server(gpu_folder, options=(EXTENSION, QUIET)) as server:
        await connect("local").service()
        disconnect()
        (service,) = find_services()
        (service.folder / "socket").rename(service.folder / "hidden")
        try:
            (cluster,) = await read_clusters(server)
        finally:
            (service.folder / "hidden").rename(service.folder / "socket")
        assert "does not answer" in cluster["problem"]
        assert (cluster["nodes"], cluster["kernels"]) == ([], [])
