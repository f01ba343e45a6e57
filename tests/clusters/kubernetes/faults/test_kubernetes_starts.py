"""Pods that cannot start, or start slowly: how long their kernels wait, and for which reason they fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kit.clusters.faults import assert_plain, say
from kit.clusters.kubelets import Kubelets
from kit.clusters.kubernetes.faults import SPARE, KubernetesWorld, containerd_pid, tag_image
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import allow_s

REGISTRY = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.end_headers()
    do_HEAD = do_GET
server = HTTPServer(("127.0.0.1", 5000), Handler)
print("ready", flush=True)
server.serve_forever()
"""

OWN_SECRET = """
  volumes: [{name: own, secret: {secretName: none}}]
  containers: [{name: kernel, volumeMounts: [{name: own, mountPath: /own}]}]
"""
OWN_VARIABLE = """
  containers: [{name: kernel, env: [{name: A, valueFrom: {secretKeyRef: {name: none, key: a}}}]}]
"""


@pytest.fixture
def registry(kubelets: Kubelets) -> Iterator[None]:
    """Run a registry without images on the node n2, at localhost:5000."""
    command = ["nsenter", "--net", "--target", str(containerd_pid(kubelets, "n2"))]
    with subprocess.Popen([*command, sys.executable, "-S", "-c", REGISTRY], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        yield
        server.kill()


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "template", "reason"),
    [
        ({"image": "localhost:5000/none:1"}, "", "its image cannot be pulled: .*not found"),
        ({"image": "Not An Image"}, "", "its image cannot be used"),
        ({"volumes": "none:/data"}, "", 'persistentvolumeclaim "none" not found'),
        ({}, OWN_SECRET, 'secret "none" not found'),
        (
            {},
            OWN_VARIABLE,
            'secret "none" not found',
        ),
    ],
    ids=["image", "name", "claim", "volume", "variable"],
)
async def test_a_pod_that_can_never_start(
    kubernetes_world: KubernetesWorld, options: dict[str, str], template: str, reason: str, registry: None
) -> None:
    template_file = kubernetes_world.folder / "pod.yaml"
    template_file.write_text(f"spec:\n  securityContext: {{runAsUser: 12345}}{template}")
    kubernetes_world.configure(allowed_volumes=["*"])
    began = time.monotonic()
    with pytest.raises(RoostError, match=reason) as refused:
        await asyncio.wait_for(kubernetes_world.notebook(options=options, labels=SPARE).open(), allow_s(20))
    say(f"{refused.value.user_message!r} after", began)
    assert_plain(refused.value.user_message)


@pytest.mark.long
@pytest.mark.parametrize("is_late", [False, True], ids=["in time", "too late"])
async def test_a_slow_image(kubernetes_world: KubernetesWorld, is_late: bool) -> None:
    """No registry answers. The image comes to the node later, or the start's time runs out."""
    image = f"registry.example/late:{is_late:d}"
    notebook = kubernetes_world.notebook(
        options={"image": image}, labels=SPARE, launch_timeout=15 if is_late else 60
    )
    began = time.monotonic()
    opening = asyncio.create_task(notebook.open())
    say(await kubernetes_world.waits_for("its image cannot be pulled yet"))
    if is_late:
        with pytest.raises(RoostError, match="its image") as refused:
            await opening
        say(f"{refused.value.user_message!r} after", began)
        assert_plain(refused.value.user_message)
        return
    kubernetes_world.kill_service()
    tag_image(kubernetes_world.cluster, "n2", image)
    tagged_at = time.monotonic()
    await opening
    say("started after", tagged_at)
    await notebook.run("mine = 42")
    await kubernetes_world.lives(notebook)
