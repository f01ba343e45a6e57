"""Becoming a driver of a Ray cluster, or saying within seconds, in one sentence, why that cannot be.

`ray.init` hangs for 20 to 60 s and then fails without a type where an address, a token or a version is wrong, or
where no Ray node runs on this machine; a token that is asked for and not there even aborts the process. So what
it needs is checked first: the address, the port, the token, the versions, this machine.

All of it blocks: call it off the event loop. Ray is imported by `join` alone: 0.4 s of processor time, 115 MiB.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import importlib.util
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from roost.launchers.daemon.tasks import start_thread
from roost.scheduler.errors import BackendUnavailable, ConfigError

from .checks import (
    ask,
    check_machine,
    check_token,
    check_versions,
    format_first_line,
    greet,
    resolve,
    run_in_time,
)

log = logging.getLogger(__name__)

_LEAVE_S = 10.0

_attempt = threading.Lock()
"""Held while an attempt to join is under way: Ray has one driver per process, and `ray.init` cannot be interrupted."""
_cluster_id = ""
"""The cluster that was joined last. To ask through Ray, once another is at its address, would abort the process."""


def join(address: str, *, namespace: str, deadline_s: float = 20.0) -> str:
    """Become a driver of the Ray cluster at `address` (`host:port`, or "auto" or empty); returns its GCS's address.

    Blocks, for at most some `deadline_s` and the import of Ray. May be repeated: who is a driver of that cluster
    stays it. Raises `ConfigError` where someone must change something, `BackendUnavailable` where it may pass.
    """
    global _cluster_id
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("the Ray backend needs ray: pip install 'roost[ray]'")
    give_up_at = time.monotonic() + deadline_s
    gcs = resolve(address)
    greet(gcs)
    importing_at = time.monotonic()
    try:
        _import_ray()
    except ImportError as problem:
        raise ConfigError(f"ray is installed here and cannot be imported: {problem}") from problem
    import ray

    give_up_at += time.monotonic() - importing_at
    check_token(gcs, address)
    facts = ask(gcs)
    if facts is not None:
        check_versions(gcs, facts, ray.__version__)
        check_machine(gcs, facts)
    if ray.is_initialized():
        if facts is None or facts.cluster_id == _cluster_id:
            return str(ray.get_runtime_context().gcs_address)
        leave()
    _init(gcs, namespace, give_up_at)
    _cluster_id = facts.cluster_id if facts is not None else ""
    return str(ray.get_runtime_context().gcs_address)


def cluster_id() -> str:
    """What Ray calls the cluster that was joined last: another one when it starts anew without its state."""
    return _cluster_id


def leave() -> None:
    """Be no driver any more; leases that are detached stay. Blocks for seconds at most, and may be repeated."""
    if "ray" not in sys.modules or _attempt.locked():
        return  # a driver that comes too late leaves by itself
    try:
        run_in_time(_shutdown, _LEAVE_S, "leaving the Ray cluster")
    except BackendUnavailable as problem:
        log.warning("%s", problem)


def _import_ray() -> None:
    """Import Ray without a grammar that jsonschema takes along where Jupyter is: 1.4 of 1.8 s of processor time."""
    grammar = "rfc3987_syntax"
    is_loaded = grammar in sys.modules
    sys.modules.setdefault(grammar, None)  # type: ignore[arg-type]
    try:
        import ray  # noqa: F401
    finally:
        if not is_loaded:
            del sys.modules[grammar]


def _init(gcs: str, namespace: str, give_up_at: float) -> None:
    """Call `ray.init` in a thread. If it takes too long, leave the thread alone: it then undoes what it did."""
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
            with _signals_kept(), _silent("SIGTERM handler is not set"):
                ray.init(address=gcs, namespace=namespace, log_to_driver=False, configure_logging=False)
            _stop_listening()
        except BaseException:
            undo()  # Ray counts a process whose `init` failed half way as joined
            raise

    outcome = start_thread(work, name="roost-ray-join", undo=undo)
    concurrent.futures.wait([outcome], max(1.0, give_up_at - time.monotonic()))
    if outcome.cancel():
        raise BackendUnavailable(
            f"the Ray cluster at {gcs} answers, and ray.init hangs: is its raylet here healthy?"
        )
    try:
        outcome.result()
    except Exception as problem:
        raise BackendUnavailable(
            f"the Ray cluster at {gcs} did not take roost's service in: {format_first_line(problem)}"
        ) from problem
    _attempt.release()


def _stop_listening() -> None:
    """Have the thread end that would print other jobs' errors: once the GCS is gone it asks without a pause, and
    takes a core until Ray ends the process. Ray has no option for that."""
    with suppress(ImportError, AttributeError):
        from ray._private.worker import global_worker

        global_worker.threads_stopped.set()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """SIGTERM and SIGINT act afterwards as before.

    A driver sets a handler of its own in C that prints a stack trace, and `ray.shutdown` the default, by which
    the next SIGTERM ends the process. Python can set handlers in its main thread only, and does not see these.
    """
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(256) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, action in kept.items():  # struct sigaction: 152 bytes on Linux
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(int(number), action, None)


@contextmanager
def _silent(text: str) -> Iterator[None]:
    """Ray's log is without a line that would only worry its reader."""

    def keep(record: logging.LogRecord) -> bool:
        return text not in str(record.msg)

    logger = logging.getLogger("ray._private.worker")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _shutdown() -> None:
    import ray

    with _signals_kept():
        ray.shutdown()
