"""Plain reasons: why a container ended, why YARN grants none yet, why an application does not serve. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from roost.launchers.protocol.shared_values import OUT_OF_MEMORY
from roost.scheduler.backends.node_archive import advise_python

from .master.messages import Container, Resources
from .rest import JsonObject

_ENDS = {
    -100: "YARN took its container back",
    -101: "the disks of its node failed",
    -102: "YARN gave its resources to others (preemption)",
    -103: f"{OUT_OF_MEMORY}: YARN limits virtual memory (yarn.nodemanager.vmem-check-enabled)",
    -104: OUT_OF_MEMORY,
    -105: "roost's application master ended its container",
    -106: "the ResourceManager ended its container",
    -107: "roost's application has ended",
    -108: "its node ended it in favour of others",
    -109: "its container wrote too many logs",
    137: "its container was killed",
    143: "its container was ended",
    154: "its NodeManager has lost it",
}
"""Reasons by the exit status of a container (Hadoop's ContainerExitStatus; 154 is a container that was lost)."""
_FINAL = {126, 127}
"""Exit statuses of a shell that cannot run the command. A retry on another node would fail too."""
_AM_SHARE = re.compile(r"AM resource limit|AM Resource limit|not yet activated", re.IGNORECASE)
_NOISE = re.compile(
    r"\[|Last 4096|Container (exited|id)|at |For more detailed|\. Failing|Error file|Failing this attempt|Exit code"
    r"|Application application_\S+ failed"
)
"""The beginning of a line that YARN adds to what a container wrote."""
_PYTHON_FAILS = (
    "No module named",
    "No such file or directory",
    "Permission denied",
    "SyntaxError",
    "not found",
)
"""Texts in the output of a shell, or of a Python, that cannot run roost's code."""
_FORGOTTEN = "was running but not reported"
"""The ResourceManager's text about the containers of a NodeManager that was started again without recovery."""
_LONGEST = 300


def describe_end(container: Container, python: str, node_trouble: str = "") -> tuple[str, bool]:
    """Return why a container ended, and whether a retry is useless.

    `node_trouble` is the trouble of a lost node, if it is known.
    """
    status = container.exit_status
    if _FORGOTTEN in container.diagnostics:
        return f"the NodeManager of {container.node} was started again and has forgotten its container", False
    if is_node_lost(container):
        if node_trouble:
            return f"{container.node} {node_trouble}", False
        return f"{container.node} does not answer YARN any more, or has left", False
    if status in _FINAL:
        return f"{python} cannot be run on {container.node}: {advise_python('')}", True
    if status in _ENDS:
        return _ENDS[status], False
    cause = _find_cause(container.diagnostics)
    if _is_python_problem(cause):
        problem = f"{python} on {container.node} cannot run roost's agent ({cause})"
        return f"{problem}: {advise_python(cause)}", True
    return f"its agent ended with exit status {status}" + (f" ({cause})" if cause else ""), False


def is_node_lost(container: Container) -> bool:
    """True if YARN or a NodeManager has given up a container that it cannot reach. Its processes may live on."""
    diagnostics = container.diagnostics
    return container.exit_status == -100 and ("lost" in diagnostics or _FORGOTTEN in diagnostics)


def describe_preemption(contract: str) -> str:
    """Return a clause: YARN takes a container back if `contract` is "strict", or wants it back if it is "contract"."""
    if contract == "strict":
        return "YARN takes its resources back for others, within seconds (preemption)"
    return "YARN wants its resources back for others (preemption)"


def describe_wait(asked: Resources, headroom: Resources | None, queue: JsonObject | None, user: str) -> str:
    """Return why YARN does not grant a container although a node has room for it, in a clause that names the queue.

    `headroom` is the amount that the limits of the queue and of the user leave. It may be too low, but not too high: a
    user's limit grows with the use of the queue.
    """
    name = f"queue {queue['queueName']}" if queue is not None else "its queue"
    short = ", ".join(find_short(asked, headroom))
    if queue is not None:
        used, largest = queue.get("absoluteUsedCapacity", 0.0), queue.get("absoluteMaxCapacity", 100.0)
        if used >= largest - 0.5:
            return f"{name} is full: it uses its {largest:.0f} % of the cluster"
        if (short or headroom is None) and _is_user_limited(queue, user):
            factor = queue.get("userLimitFactor", 1.0)
            return f"{name} gives {user} no more now: user-limit-factor is {factor:g}"
    if short:
        return f"{name} is full: {short} too few are left for it"
    return f"other applications of {name} go first"


def find_short(asked: Resources, limit: Resources | None) -> list[str]:
    """Return the amounts that exceed a limit, for people; none if the limit is unknown.

    >>> find_short(Resources(memory_mb=2048, vcores=1), Resources(memory_mb=1024, vcores=4))
    ['1024 MiB memory']
    """
    if limit is None:
        return []
    short = []
    if asked.memory_mb > limit.memory_mb:
        short.append(f"{asked.memory_mb - max(0, limit.memory_mb)} MiB memory")
    if asked.vcores > limit.vcores:
        short.append(_count(asked.vcores - max(0, limit.vcores), "CPU"))
    for name, amount in asked.others.items():
        if amount > limit.others.get(name, 0):
            short.append(f"{amount - max(0, limit.others.get(name, 0))} {name}")
    return short


def describe_application(application: Mapping[str, object]) -> str:
    """Return why an application does not serve yet."""
    queue = application.get("queue", "")
    diagnostics = str(application.get("diagnostics", ""))
    state = application.get("state", "")
    if _AM_SHARE.search(diagnostics):
        return (
            f"queue {queue} has no room for roost's application master: the applications there use their share "
            "(maximum-am-resource-percent)"
        )
    if state == "ACCEPTED":
        return f"roost's application master waits for room in queue {queue}"
    return f"roost's application master starts in queue {queue}"


def explain_failure(application: Mapping[str, object], python: str) -> str:
    """Return one sentence about an application that has ended. `python` runs its master."""
    diagnostics = str(application.get("diagnostics", ""))
    queue = application.get("queue", "")
    cause = _find_cause(diagnostics)
    if "unknown queue" in diagnostics or "does not exist" in diagnostics:
        return f"YARN has no queue {queue}: name another one (option queue)."
    if (
        "cannot submit" in diagnostics
        or "AccessControl" in diagnostics
        or "does not have permission" in diagnostics
    ):
        return f"YARN does not let this user submit to queue {queue}: {cause}."
    if _is_python_problem(cause):
        return (
            f"{python} on the nodes cannot run roost's application master ({cause}): {advise_python(cause)} "
            "(c.RoostYarnBackend.python)."
        )
    if not cause and application.get("state") == "FAILED":
        return (
            f"roost's application master in queue {queue} has ended without a message: check that "
            f"c.RoostYarnBackend.python = {python!r} is a Python, and read `yarn logs -applicationId "
            f"{application.get('id', '')}`."
        )
    return f"YARN has ended roost's application in queue {queue}: {cause or 'it gives no reason'}."


def _is_user_limited(queue: JsonObject, user: str) -> bool:
    for one in (queue.get("users") or {}).get("user", ()):
        if one.get("username") == user:
            used, most = one.get("resourcesUsed", {}), one.get("userResourceLimit", {})
            return bool(most) and any(
                used.get(name, 0) >= 0.9 * most.get(name, 0) > 0 for name in ("memory", "vCores")
            )
    return False


def _is_python_problem(cause: str) -> bool:
    return any(part in cause for part in _PYTHON_FAILS)


def _count(amount: int, thing: str) -> str:
    return f"{amount} {thing}" + ("" if amount == 1 else "s")


def _find_cause(diagnostics: str) -> str:
    """Return the last line that is not YARN's own. Often the container wrote it to `stderr`."""
    lines = [line.strip() for line in diagnostics.splitlines()]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    return kept[-1][:_LONGEST].rstrip(".") if kept else ""
