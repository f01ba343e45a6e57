"""Sends the agent's code to a node and starts the agent there. The node need not have roost.

`bring_up` and `find_noted` run on the node, in a process of the cluster manager. They arrive pickled by value, and use
the standard library alone.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import marshal
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Assignment
from roost.placement.model.json_codec import encode

Answer = dict[str, Any]
"""An agent's address, public key and GPUs: {"endpoint", "public", "devices"}. Or {"problem"} if there is no agent."""


def name_agent(manager: str, cluster: str, node_id: str) -> str:
    """Return the name of an agent's folder in its node's runtime folder. It is the same when the cluster comes back."""
    digest = hashlib.sha256(f"{cluster} {node_id}".encode()).hexdigest()[:8]
    return f"agent-{manager}-{digest}"


def find_noted(name: str, lease_ids: Iterable[str], variables: Mapping[str, str]) -> list[str]:
    """Return the ids among `lease_ids` that the agent called `name` has noted in its ledger."""
    import hashlib
    import os

    folder = os.path.join(find_base(variables), name, "leases")
    files = {lease: f"{hashlib.sha256(lease.encode()).hexdigest()[:32]}.json" for lease in lease_ids}
    return [lease for lease, file in files.items() if os.path.exists(os.path.join(folder, file))]


def advise_python(cause: str) -> str:
    """Return what helps a Python that cannot run roost's agent, as a clause. `cause` is the last line that it printed.

    ipykernel brings each package that an agent needs.
    """
    import re

    missing = re.search(r"No module named '?(\w+)", cause)
    if missing is not None and missing.group(1) != "roost":
        return "install ipykernel into it, or set the option python to a Python that has ipykernel"
    return "set the option python to a Python that has ipykernel"


@functools.cache
def pack(*, is_imported: bool = False, has_bytecode: bool = False) -> tuple[bytes, str]:
    """Return the code that a node needs, as a zip archive, and a digest of the archive.

    `is_imported`: the node runs the archive itself (see `start_archive`), and starts no zygote. `has_bytecode`, which
    is then always so: the first agent on a node starts 0.2 s faster, from an archive of 0.8 MB instead of 0.3 MB. A
    Python of another version reads the sources.
    """
    import roost

    root = Path(roost.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        folders = (root / "placement/model", root / "launchers")
        modules = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
        files = {
            f"roost/{path.relative_to(root)}": path
            for path in (root / "__init__.py", root / "placement/__init__.py", *modules)
            if not (is_imported and path.parent.name == "zygote")
        }
        if is_imported:
            files["__main__.py"] = root / "launchers/agent/first_process.py"
        for name, path in files.items():
            source = path.read_bytes()
            # Without dates: the same code gives the same archive.
            archive.writestr(zipfile.ZipInfo(name), source, zipfile.ZIP_DEFLATED)
            if is_imported or has_bytecode:
                place = f"{name}c" if is_imported else _find_cache(name)  # where Python looks for it
                archive.writestr(zipfile.ZipInfo(place), _compile(source, name), zipfile.ZIP_DEFLATED)
    return content.getvalue(), hashlib.sha256(content.getvalue()).hexdigest()[:12]


def dump_start(settings: AgentSettings, assignment: Assignment) -> bytes:
    """Return an agent's settings and assignment as bytes. `start_archive.add_start` adds them to an archive.

    They hold the agent's keys: keep them secret.
    """
    return json.dumps({"settings": encode(settings), "assignment": encode(assignment)}).encode()


def _find_cache(name: str) -> str:
    """Return the path of a source file's bytecode, without the prefix that this process may have."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/__pycache__/{file.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"


def _compile(source: bytes, name: str) -> bytes:
    """Return the content of a .pyc file that is never compared with its source (PEP 552)."""
    code = compile(source, name, "exec", dont_inherit=True)
    unchecked = (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    return importlib.util.MAGIC_NUMBER + unchecked + marshal.dumps(code)


def find_base(variables: Mapping[str, str]) -> str:
    """Return the folder of this user's agents on a node."""
    import os

    return variables.get("ROOST_RUNTIME_DIR") or f"/tmp/roost-{os.getuid()}"


def check_base(base: str) -> str:
    """Make the folder if need be. Return why it cannot be used, as a clause, or an empty text."""
    import os
    import stat

    os.makedirs(base, mode=0o700, exist_ok=True)
    status = os.lstat(base)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        return f"{base} is not a private folder of the cluster's user: set ROOST_RUNTIME_DIR"
    return ""


def find_code(base: str, digest: str) -> str:
    """Return the folder with the unpacked archive of this digest; empty if there is none."""
    import os

    code = os.path.join(base, f"code-{digest}")
    return code if os.path.isdir(code) else ""


def unpack(archive: bytes, base: str, digest: str) -> str:
    """Unpack an archive, as a whole or not at all. Return its folder. Raises `OSError`."""
    import io
    import os
    import shutil
    import tempfile
    import zipfile

    code = os.path.join(base, f"code-{digest}")
    fresh = tempfile.mkdtemp(prefix=".code-", dir=base)
    try:
        zipfile.ZipFile(io.BytesIO(archive)).extractall(fresh)
        os.rename(fresh, code)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        if not os.path.isdir(code):  # else another process was faster
            raise
    return code


def bring_up(
    archive: bytes,
    digest: str,
    name: str,
    settings: str,
    manager: Mapping[str, Any],
    clients: Sequence[str],
    python: str,
    variables: Mapping[str, str],
) -> Answer:
    """Find or start the agent of this node, and return its `Answer`. Blocks for up to 30 s.

    `archive` and `digest` are from `pack`, and `name` is from `name_agent`. `settings` is the JSON of `AgentSettings`.
    `manager` has the fields of `messages.Manager`; the start time of its `pid` is read here. The agent then accepts the
    `clients`, which are public keys. `variables` is the environment of the manager's daemon. The agent gets it, and the
    kernels' environments are added to it.
    """
    import json
    import os
    import subprocess
    import sys

    env = {name: value for name, value in variables.items() if name != "CUDA_VISIBLE_DEVICES"}
    base = find_base(env)
    if problem := check_base(base):
        return {"problem": problem}
    code = find_code(base, digest) or unpack(archive, base, digest)
    paths = [code, *filter(None, [env.get("PYTHONPATH")])]
    with open(f"/proc/{manager['pid']}/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    manager = {**manager, "process_started_at": ticks / os.sysconf("SC_CLK_TCK")}
    program = python or sys.executable
    try:
        done = subprocess.run(
            [
                program,
                "-m",
                "roost.launchers.agent.find_or_start",
                os.path.join(
                    base, name
                ),  # also where XDG_RUNTIME_DIR names another place: `find_noted` looks here
                settings,
                json.dumps(manager),
                json.dumps(list(clients)),
            ],
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
        answer: Answer = json.loads(done.stdout)
    except ValueError:
        errors = done.stderr.strip().splitlines()
        reason = errors[-1].replace("ModuleNotFoundError: ", "") if errors else "it ended"
        return {
            "problem": f"{program} on that node cannot run roost's agent ({reason}): {advise_python(reason)}"
        }
    return answer
