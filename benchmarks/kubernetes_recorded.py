"""An imitation of a Kubernetes API server over HTTP, for `kubernetes_scale.py`. No node and no pod in it is real.

    python benchmarks/kubernetes_recorded.py NODES PODS CHANGES_PER_S

It prints its address. It answers with pages and watches, binds each pod that roost creates to the node that the pod
requires, and replaces other people's pods at the given rate. POST /expire ends all watches with 410, so that
everything is listed again.
"""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes_objects import describe_node, describe_pod

_NODE, _POD = json.dumps(describe_node("NAME")), json.dumps(describe_pod("NAME", "HOST", "100m"))
PODS = "/api/v1/namespaces/default/pods"


class Recorded:
    """The content of the API server. Watches of a path get its events through queues."""

    def __init__(self, nodes: int, pods: int) -> None:
        self.node = [f"node-{number:05}" for number in range(nodes)]
        self.generation = [0] * pods
        self.own: dict[str, dict[str, Any]] = {}
        self.version = itertools.count(1_000)
        self.watches: dict[str, list[queue.Queue[dict[str, Any] | None]]] = {}
        self.past: dict[str, deque[dict[str, Any]]] = defaultdict(lambda: deque(maxlen=5_000))
        self._lock = threading.Lock()

    def other(self, number: int) -> dict[str, Any]:
        name = f"web-{number:06}-{self.generation[number]}"
        return describe_pod(name, self.node[number % len(self.node)], "100m", version=next(self.version))

    def items(self, path: str, start: int, limit: int) -> Iterator[str]:
        """Yield a page of objects as JSON. Each copies one text with another name, to save CPU time."""
        if path == "/api/v1/nodes":
            yield from (_NODE.replace("NAME", name) for name in self.node[start : start + limit])
        elif path == "/api/v1/pods":
            for number in range(start, min(start + limit, len(self.generation))):
                name = f"web-{number:06}-{self.generation[number]}"
                yield _POD.replace("NAME", name).replace("HOST", self.node[number % len(self.node)])
        else:
            yield from map(json.dumps, list(self.own.values()))

    def count(self, path: str) -> int:
        return {"/api/v1/nodes": len(self.node), "/api/v1/pods": len(self.generation)}.get(path, 0)

    def publish(self, path: str, kind: str, item: dict[str, Any]) -> None:
        with self._lock:
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(next(self.version))}}
            event = {"type": kind, "object": item}
            self.past[path].append(event)
            for each in self.watches.get(path, ()):
                each.put(event)

    def watch(self, path: str, version: int) -> queue.Queue[dict[str, Any] | None]:
        """Return a queue that gets all events since a version."""
        mine: queue.Queue[dict[str, Any] | None] = queue.Queue()
        with self._lock:
            for event in self.past[path]:
                if int(event["object"]["metadata"]["resourceVersion"]) > version:
                    mine.put(event)
            self.watches.setdefault(path, []).append(mine)
        return mine

    def expire(self) -> None:
        error = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
        for each in list(itertools.chain(*self.watches.values())):
            each.put(error)

    def churn(self, per_s: float) -> None:
        for number in itertools.cycle(range(len(self.generation))):
            time.sleep(1 / per_s)
            self.publish("/api/v1/pods", "DELETED", self.other(number))
            self.generation[number] += 1
            self.publish("/api/v1/pods", "ADDED", self.other(number))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def __init__(self, state: Recorded, *arguments: Any) -> None:
        self.state = state
        super().__init__(*arguments)

    def handle(self) -> None:
        with suppress(OSError):  # the reader has gone
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: Any) -> None:
        self.send(json.dumps(content).encode())

    def send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def body(self) -> Any:
        length = int(self.headers.get("Content-Length") or 0)
        return json.loads(self.rfile.read(length) or b"{}")

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path.startswith("/apis/"):  # no metrics
            self.send_error(404)
            return
        if "watch" in query:
            self.watch(url.path, int(query["resourceVersion"]), float(query["timeoutSeconds"]))
            return
        start, limit = int(query.get("continue", 0)), int(query.get("limit", 500))
        more = str(start + limit) if start + limit < self.state.count(url.path) else ""
        metadata = json.dumps({"resourceVersion": str(next(self.state.version)), "continue": more})
        items = ",".join(self.state.items(url.path, start, limit))
        self.send(f'{{"metadata": {metadata}, "items": [{items}]}}'.encode())

    def watch(self, path: str, version: int, timeout_s: float) -> None:
        mine = self.state.watch(path, version)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        end = time.monotonic() + timeout_s
        try:
            while (left_s := end - time.monotonic()) > 0:
                try:
                    event = mine.get(timeout=left_s)
                except queue.Empty:
                    break
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
                self.wfile.flush()
                if event and event["type"] == "ERROR":
                    break
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the reader has gone
            pass
        finally:
            self.state.watches[path].remove(mine)

    def do_POST(self) -> None:
        content = self.body()
        if self.path == "/expire":
            self.state.expire()
        elif self.path.endswith("/selfsubjectreviews"):
            content["status"] = {"userInfo": {"username": "roost"}}
        elif urlsplit(self.path).path == PODS and "dryRun" not in self.path:
            metadata = {"uid": content["metadata"]["name"], "namespace": "default", "resourceVersion": "1"}
            content["metadata"].update(metadata)
            self.state.own[content["metadata"]["name"]] = content
            self.state.publish(PODS, "ADDED", content)
        self.answer(content)

    def do_PATCH(self) -> None:
        """Bind a pod to the node that it requires. roost patches a pod only to remove its scheduling gate."""
        self.body()
        pod = self.state.own[self.path.rpartition("/")[2]]
        affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        node = affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0]
        rest = {name: value for name, value in pod["spec"].items() if name != "schedulingGates"}
        pod["spec"] = {**rest, "nodeName": node}
        self.state.publish(PODS, "MODIFIED", pod)
        self.answer(pod)

    def do_DELETE(self) -> None:
        self.body()
        pod = self.state.own.pop(self.path.rpartition("/")[2])
        self.state.publish(PODS, "DELETED", pod)
        self.answer(pod)


def main() -> None:
    nodes, pods, per_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    state = Recorded(nodes, pods)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state))
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    threading.Thread(target=state.churn, args=(per_s,), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
