"""Brings an agent up on a node of a Ray cluster: a task on that node starts it, as a process of its own.

The node needs not have roost: its part of it is sent along. This module's `bring_up` runs in a Ray worker, pickled by
value, and uses the standard library alone.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

from roost.launchers.messages import Manager
from roost.launchers.node import AgentSettings
from roost.launchers.wire import encode

from .ray_state import RayNode


def agent_name(cluster_address: str, node: RayNode) -> str:
    """The folder of a node's agent, in the runtime folder there: the same when the cluster comes back."""
    digest = hashlib.sha256(f"{cluster_address} {node.id}".encode()).hexdigest()[:8]
    return f"agent-ray-{digest}"


def agent_on(
    node: RayNode, settings: AgentSettings, *, cluster_address: str, grace_s: float, python: str
) -> Any:
    """A Ray reference to what `bring_up` returns, from that node. Blocks for a moment."""
    manager = Manager(name="Ray", pid=0, process_started_at=0.0, address=cluster_address, grace_s=grace_s)
    archive, digest = _node_side()
    return task_on(node, bring_up).remote(
        archive,
        digest,
        agent_name(cluster_address, node),
        json.dumps(encode(settings)),
        encode(manager),
        python,
    )


def task_on(node: RayNode, function: Any) -> Any:
    """`task` on that node, and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return task(function).options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.ray_id, soft=False))


def task(function: Any) -> Any:
    """A Ray task that takes nothing, of a function of ours that needs nothing of ours: the node need not have roost.

    Its worker is kept for the next one (by default Ray ends it after each task with GPUs).
    """
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    return ray.remote(num_cpus=0, max_calls=0, max_retries=0)(function)


@functools.cache
def _node_side() -> tuple[bytes, str]:
    """roost's part of a node as a zip archive, and what names its content."""
    import roost

    root = Path(roost.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (root / "__init__.py", *sorted((root / "launchers").glob("*.py"))):
            entry = zipfile.ZipInfo(
                f"roost/{path.relative_to(root)}"
            )  # of no date: the same code, the same archive
            archive.writestr(entry, path.read_bytes())
    return content.getvalue(), hashlib.sha256(content.getvalue()).hexdigest()[:12]


def bring_up(
    archive: bytes, digest: str, name: str, settings: str, manager: dict[str, Any], python: str
) -> dict[str, Any]:
    """Start the agent of this node, or find it; runs on the node, as a child of the raylet.

    Returns {"endpoint", "keys"}, or {"problem"} with a sentence.
    """
    import io
    import json
    import os
    import shutil
    import stat
    import subprocess
    import sys
    import tempfile
    import zipfile

    raylet = os.getppid()
    with open(
        f"/proc/{raylet}/environ", "rb"
    ) as file:  # a worker's own is full of what Ray sets for its tasks
        pairs = (
            pair.partition("=") for pair in file.read().decode(errors="surrogateescape").split("\0") if pair
        )
        env = {name: value for name, _, value in pairs}
    env = {
        name: value
        for name, value in env.items()
        if name.startswith("RAY_AUTH_") or not (name.startswith("RAY_") or name == "CUDA_VISIBLE_DEVICES")
    }
    base = env.get("ROOST_RUNTIME_DIR") or f"/tmp/roost-{os.getuid()}"
    os.makedirs(base, mode=0o700, exist_ok=True)
    status = os.lstat(base)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        return {"problem": f"{base} is not a private folder of the cluster's user: set ROOST_RUNTIME_DIR"}
    code = os.path.join(base, f"code-{digest}")
    if not os.path.isdir(code):
        fresh = tempfile.mkdtemp(prefix=".code-", dir=base)
        zipfile.ZipFile(io.BytesIO(archive)).extractall(fresh)
        try:
            os.rename(fresh, code)
        except OSError:  # somebody else was faster
            shutil.rmtree(fresh, ignore_errors=True)
    paths = [code, *filter(None, [env.get("PYTHONPATH")])]
    with open(f"/proc/{raylet}/stat", "rb") as stat_file:
        ticks = int(stat_file.read().rpartition(b")")[2].split()[19])
    manager = {**manager, "pid": raylet, "process_started_at": ticks / os.sysconf("SC_CLK_TCK")}
    program = python or sys.executable
    try:
        done = subprocess.run(
            [program, "-m", "roost.launchers.local", name, settings, json.dumps(manager)],
            env={**env, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return {"problem": f"{program} cannot be run: {problem}"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines()
        return {
            "problem": f"{program} on that node cannot run roost's agent: {said[-1] if said else 'it ended'}"
        }
    return answer
