"""Joins a Ray cluster as a driver, or reports within seconds, in one sentence, why that is not possible.

`ray.init` hangs for 20 to 60 s, or aborts the process, if an address, a token or a version is wrong, or if no Ray node
runs on this machine. So these are checked first. All functions block, so call them in a thread.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from roost.launchers.daemon.tasks import start_thread
from roost.scheduler.errors import BackendUnavailable, ConfigError

from . import checks

log = logging.getLogger(__name__)

_LEAVE_S = 10.0

_attempt = threading.Lock()
"""Held during an attempt to join: Ray has one driver per process, and `ray.init` cannot be interrupted."""
_cluster_id = ""
"""The cluster that was joined last. A call to Ray aborts the process if another cluster is at that address now."""
_raylet = ""
"""The id of the raylet through which the cluster was joined last."""


def join(address: str, *, namespace: str, deadline_s: float = 20.0) -> str:
    """Become a driver of the Ray cluster at `address` (`host:port`, or "auto" or empty); return its GCS's address.

    Blocks for about `deadline_s` at most, and for the import of Ray. May be repeated: if the process is a
    driver of that cluster already, nothing changes. Raises `ConfigError` if somebody must change something,
    and `BackendUnavailable` if the problem may pass.
    """
    global _cluster_id, _raylet
    give_up_at = time.monotonic() + deadline_s
    gcs = checks.resolve(address)
    checks.greet(gcs)
    importing_at = time.monotonic()
    try:
        _import_ray()
    except ImportError as problem:
        raise ConfigError(f"ray is installed here and cannot be imported: {problem}") from problem
    import ray

    give_up_at += time.monotonic() - importing_at
    checks.check_token(gcs, address)
    facts = checks.ask(gcs)
    if facts is not None:
        checks.check_versions(gcs, facts, ray.__version__)
        checks.check_machine(gcs, facts)
    if ray.is_initialized():
        if facts is None or facts.cluster_id == _cluster_id:
            return str(ray.get_runtime_context().gcs_address)
        leave()
    _init(gcs, namespace, give_up_at)
    _cluster_id = facts.cluster_id if facts is not None else ""
    _raylet = ray.get_runtime_context().get_node_id()
    return str(ray.get_runtime_context().gcs_address)


def get_cluster_id() -> str:
    return _cluster_id


def get_raylet() -> str:
    """Return the id of the raylet through which the cluster was joined last; empty if none was joined."""
    return _raylet


def leave() -> None:
    """Stop being a driver; leases stay. Blocks for seconds at most, and may be repeated."""
    if "ray" not in sys.modules or _attempt.locked():
        return  # an attempt that succeeds too late leaves by itself
    try:
        checks.run_in_time(_shutdown, _LEAVE_S, "leaving the Ray cluster")
    except BackendUnavailable as problem:
        log.warning("%s", problem)


def _import_ray() -> None:
    """Import Ray without the module `rfc3987_syntax`, which would take 1.4 of 1.8 CPU seconds.

    Ray imports jsonschema, and jsonschema imports this module if it is installed, as it is with Jupyter.
    """
    grammar = "rfc3987_syntax"
    is_loaded = grammar in sys.modules
    sys.modules.setdefault(grammar, None)  # type: ignore[arg-type]
    try:
        import ray  # noqa: F401
    finally:
        if not is_loaded:
            del sys.modules[grammar]


def _init(gcs: str, namespace: str, give_up_at: float) -> None:
    """Call `ray.init` in a thread. Raises `BackendUnavailable` if it fails, or at the deadline.

    After the deadline the thread goes on alone. If it joins the cluster then, it leaves the cluster again.
    """
    import ray

    if not _attempt.acquire(timeout=max(0.0, give_up_at - time.monotonic())):
        raise BackendUnavailable(f"an earlier attempt to join the Ray cluster at {gcs} has not ended yet")

    def undo() -> None:
        try:
            _shutdown()
        finally:
            _attempt.release()

    def work() -> None:
        try:
            logging.getLogger("ray._private.worker").addFilter(_is_useful)
            with _keep_signals():
                ray.init(address=gcs, namespace=namespace, log_to_driver=False, configure_logging=False)
            _stop_error_listener()
        except BaseException:
            undo()  # otherwise Ray regards the process as joined, although `init` failed half way
            raise

    outcome = start_thread(work, name="roost-ray-join", undo=undo)
    concurrent.futures.wait([outcome], max(1.0, give_up_at - time.monotonic()))
    if outcome.cancel():
        raise BackendUnavailable(f"the Ray cluster at {gcs} answers, and ray.init hangs: is its raylet well?")
    try:
        outcome.result()
    except Exception as problem:
        raise BackendUnavailable(
            f"the Ray cluster at {gcs} did not take roost's service in: {checks.format_first_line(problem)}"
        ) from problem
    _attempt.release()


def _stop_error_listener() -> None:
    """End Ray's thread that prints the errors of other jobs: it occupies a core once the GCS is gone."""
    with suppress(ImportError, AttributeError):
        from ray._private.worker import global_worker

        global_worker.threads_stopped.set()


@contextmanager
def _keep_signals() -> Iterator[None]:
    """Restore the handlers of SIGTERM and SIGINT at the end: Ray replaces them in C, which Python does not see."""
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(256) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, action in kept.items():  # struct sigaction: 152 bytes on Linux
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)


def _is_useful(record: logging.LogRecord) -> bool:
    """False for a line of Ray's log that would only worry its reader."""
    return "SIGTERM handler is not set" not in str(record.msg)


def _shutdown() -> None:
    import ray

    with _keep_signals():
        ray.shutdown()
