"""The service's metrics for Prometheus: counts of events, and the present state of kernels and nodes.

They are served on a loopback address or a Unix socket only. No metric names a kernel. Metrics name users only if the
operator asks for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter as Count
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric

from roost.launchers.protocol.shared_values import is_loopback
from roost.placement import Snapshot
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import Event, Kernel, KernelState

from .metrics_port import serve

log = logging.getLogger(__name__)

_COLLECT_S = 5.0
"""How long the service may take to answer one scrape."""
_CONNECT_S = 1.0
"""How long another service may take to accept a connection."""
_START_S = (0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_STATES: tuple[KernelState, ...] = ("queued", "starting", "running", "exited", "unknown")
_UNIX = "unix:"


class Metrics:
    """The metrics of one service: counts of events, and the state of kernels and nodes, read on each scrape.

    `count_kernels` (by state and user) and `read_nodes` are called on the event loop that was running when this object
    was made.
    """

    def __init__(
        self,
        count_kernels: Callable[[], Count[tuple[KernelState, str]]],
        read_nodes: Callable[[], Awaitable[Snapshot]],
        *,
        by_user: bool = False,
    ) -> None:
        self._count_kernels = count_kernels
        self._read_nodes = read_nodes
        self._by_user = by_user
        self._loop = asyncio.get_running_loop()
        self.registry = CollectorRegistry()
        labels: dict[str, Any] = {"registry": self.registry}
        self._events = Counter(
            "roost_events", "Events of the scheduler, as `roost events` shows them.", ["kind"], **labels
        )
        self._ends = Counter("roost_kernel_ends", "Kernels whose process has ended.", ["cause"], **labels)
        self._starts = Histogram(
            "roost_start_seconds",
            "Time from the request to a kernel that listens.",
            ["how"],
            buckets=_START_S,
            **labels,
        )
        self._waits = Histogram(
            "roost_queue_seconds", "Time that a start has waited for room.", buckets=_START_S, **labels
        )
        self.registry.register(self)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        self._events.labels(event.kind).inc()
        kernel = event.kernel
        if kernel is None:
            return
        if event.kind == "running" and event.detail == "":
            stages_ms = kernel.timing_ms
            self._waits.observe(stages_ms.get("queued", 0.0) / 1e3)
            whole_ms = sum(
                stages_ms.get(name, 0.0) for name in ("queued", "placed", "leased", "granted", "launched")
            )
            self._starts.labels(kernel.how).observe(whole_ms / 1e3)
        elif event.kind == "exited":
            self._ends.labels(find_cause(kernel)).inc()

    def collect(self) -> Iterator[Metric]:
        """Yield the present numbers of kernels and nodes. prometheus_client calls this in a thread of its own."""
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        counts, snapshot = reading.result(_COLLECT_S)
        yield self._describe_kernels(counts)
        if snapshot is not None:
            yield from _describe_nodes(snapshot)

    async def _read(self) -> tuple[Count[tuple[KernelState, str]], Snapshot | None]:
        snapshot = None
        with contextlib.suppress(Exception):  # the cluster is away, but the kernels are known
            snapshot = await asyncio.wait_for(self._read_nodes(), _COLLECT_S / 2)
        return self._count_kernels(), snapshot

    def _describe_kernels(self, counts: Count[tuple[KernelState, str]]) -> Metric:
        labels = ["state", "user"] if self._by_user else ["state"]
        family = GaugeMetricFamily("roost_kernels", "Kernels and waiting starts.", labels=labels)
        users = sorted({user for _, user in counts})
        for state in _STATES:
            if self._by_user:
                for user in users:
                    family.add_metric([state, user], counts[state, user])
            else:
                family.add_metric([state], sum(counts[state, user] for user in users))
        return family


def _describe_nodes(snapshot: Snapshot) -> Iterator[Metric]:
    nodes = [snapshot.node(node_id) for node_id in snapshot.nodes]
    amounts = {
        "total": ("All that the nodes have.", ("cpus", "memory_bytes", "gpus")),
        "promised": ("Promised to kernels.", ("cpus_promised", "memory_promised_bytes", "gpus_promised")),
        "used": ("Really in use, also by others.", ("cpus_used", "memory_used_bytes")),
    }
    for name, (text, fields) in amounts.items():
        family = GaugeMetricFamily(f"roost_nodes_{name}", text, labels=["resource"])
        for field in fields:
            resource = "memory_bytes" if "memory" in field else field.partition("_")[0]
            family.add_metric([resource], sum(getattr(node, field) or 0 for node in nodes))
        yield family
    states = GaugeMetricFamily("roost_nodes", "Nodes of the cluster.", labels=["state"])
    draining = sum(node.is_draining for node in nodes)
    states.add_metric(["ready"], len(nodes) - draining)
    states.add_metric(["draining"], draining)
    yield states
    if snapshot.node_types:
        text = "Nodes of each type that the cluster could start."
        types = GaugeMetricFamily("roost_node_types", text, labels=["type", "state"])
        for each in snapshot.node_types:
            types.add_metric([each.name, "running"], each.running)
            if each.limit is not None:
                types.add_metric([each.name, "limit"], each.limit)
        yield types


def find_cause(kernel: Kernel) -> str:
    """Return why a kernel's process has ended: culled, stopped, out_of_memory, killed, exited or unknown."""
    if kernel.is_stopped:
        return "culled" if kernel.reason.startswith("culled") else "stopped"
    if kernel.is_out_of_memory:
        return "out_of_memory"
    code = kernel.exit_code
    return "unknown" if code is None else "killed" if code < 0 else "exited"


@contextlib.contextmanager
def serve_metrics(metrics: Metrics, address: str) -> Iterator[str]:
    """Serve the metrics at `HOST:PORT` (loopback) or `unix:PATH`, in threads. Raises `ConfigError`.

    Another service of the same configuration may have taken the address. Then no metrics are served, and the
    log and the value of this context say why. The value is empty if the metrics are served.
    """
    path, target = read_address(address)
    try:
        listener = _listen(path, target)
    except OSError as error:
        problem = f"metrics are not served at {address}: {error.strerror or error}"
        log.warning(problem)
        yield problem
        return
    own = path.lstat() if path is not None else None
    try:
        with serve(listener, make_wsgi_app(metrics.registry)):
            yield ""
    finally:
        if path is not None and own is not None:
            with contextlib.suppress(OSError):
                if os.path.samestat(path.lstat(), own):  # else something else has taken its place
                    path.unlink()


def _listen(path: Path | None, target: tuple[str, int]) -> socket.socket:
    """Return a socket that listens at the path of a Unix socket or, without a path, at `target`. Raises `OSError`."""
    if path is not None:
        _remove_dead_socket(path)
    with contextlib.ExitStack() as unfinished:
        family = (
            socket.AF_UNIX if path is not None else socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        )
        listener = unfinished.enter_context(socket.socket(family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(str(path) if path is not None else target)
        if path is not None:
            os.chmod(path, 0o600)
        listener.listen()
        unfinished.pop_all()
    return listener


def _remove_dead_socket(path: Path) -> None:
    """Remove the socket of a killed service. Anything else at this path stays, and then the path cannot be used."""
    if not path.is_socket() or path.is_symlink():
        return
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_S)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:  # nobody listens
            path.unlink(missing_ok=True)
        except OSError:  # a socket of another kind, or a service that is slow
            pass


def read_address(address: str) -> tuple[Path | None, tuple[str, int]]:
    """Return the path of a Unix socket (None for TCP) and the loopback host and port.

    Raises `ConfigError`.
    """
    path = Path(address.removeprefix(_UNIX))
    if address.startswith(_UNIX) and path.is_absolute():
        return path, ("", 0)
    host, _, port = address.rpartition(":")
    if not is_loopback(host) or not port.isdecimal() or not 0 < int(port) <= 65_535:
        raise ConfigError(
            f"c.RoostScheduler.metrics = {address!r:.80} is not possible: give a loopback address with a port such as "
            "127.0.0.1:9476, or a socket with its whole path such as unix:/path/of/a/socket."
        )
    return None, (host.strip("[]"), int(port))
