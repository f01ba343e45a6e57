"""Kernels on SSH hosts through Jupyter Server: roost's against those of Gateway Provisioners, by real ssh.

Each side has a Jupyter Server and an account on three hosts of its own. Five sides take turns:

plain               plain Jupyter on this machine
roost               roost, a kernel with a CPU
gateway             `DistributedProvisioner`: paramiko starts the kernel, whose ports are open to the network
gateway, 0.05 s     the same with GP_POLL_INTERVAL=0.05, ten times as often as by default
tunnels             the same as `gateway` with GP_ENABLE_TUNNELING=true: six ssh for each kernel

start       POST /api/kernels sent → websocket open → first reply
stop        DELETE sent → answered
ended       DELETE sent → no process of the kernel lives, at most ENDED_S
server      kill -9 of the server of a running kernel: does the next server on that port have the kernel? If so, that
            server stops it. Then the kernel's processes are counted
program     kill -9 of a program that started a kernel: the kernel's processes, LATER_S after it
ssh         kill -9 of all ssh of a running kernel at both ends: does a cell find its variables SOON_S later? Then the
            kernel is stopped, and kernels are counted LATER_S after the stop

Claims (medians): start ≤ 0.25 × Gateway Provisioners; roost's kernels leave no process in any case.
The script needs root, sshd and `pip install gateway_provisioners`. Else it prints a note and exits with 77.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil
from claims import SKIPPED, Report, parser
from page_tables import PLAIN_JUPYTER, PageTable
from through_server import Notebook, open_notebook, post

from roost.bench.report import take_turns
from roost.bench.runs import Measurement, read_rounds, run
from roost.bench.world import (
    NEUTRAL,
    PLAIN,
    REPLY_TIMEOUT_S,
    ROOST,
    elapsed_ms,
    private_world,
    write_config,
    write_kernelspec,
)

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("docs/examples", "tests")]

from server import JupyterServer, jupyter_server

from kit.clusters.ssh.shared_cluster import RULES, cluster_settings
from kit.clusters.ssh_hosts import SshHosts, why_not

GATEWAY, FAST, TUNNELS = "gateway", "gateway, 0.05 s", "tunnels"
SIDES = ("plain", "roost", GATEWAY, FAST, TUNNELS)
FAULTY = ("plain", "roost", GATEWAY, TUNNELS)
"""The sides that lose servers and connections."""
USERS = {"roost": "ada", GATEWAY: "bob", FAST: "bob", TUNNELS: "cleo"}
"""The account on the hosts, by side."""
MOST_OF_GATEWAY = 0.25
REST_S = 0.4
ENDED_S = 120.0
SOON_S = 10.0
"""Longer than Jupyter Server takes to notice the end of a kernel, and to restart it."""
LATER_S = 60.0
_ANSWER_S = 20.0
_INSTALL_S = 60
_KEEP_ALIVE_S = 60
"""OpenSSH refuses the default of Gateway Provisioners, a hundred years: "invalid time value"."""
_LOOPBACK, _LISTENS = "0100007F:", "0A"  # in /proc/PID/net/tcp
_WHERE = "import os; print(os.readlink('/proc/self/ns/pid'), os.getpid(), flush=True)"
_PROGRAM = """
import asyncio, sys
from jupyter_client.manager import start_new_async_kernel

def show(message):
    print(message["content"].get("text", ""), end="", flush=True)

async def main():
    manager, client = await start_new_async_kernel(kernel_name=sys.argv[1])
    await client.execute_interactive(sys.argv[2], output_hook=show)
    await asyncio.Event().wait()

asyncio.run(main())
"""
_SSH_CONFIG = """\
Host *
  User {user}
  IdentityFile {folder}/id_ed25519
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  KexAlgorithms curve25519-sha256
"""
_TITLE = "Gateway Provisioners"
_FAST_TITLE, _TUNNEL_TITLE = "the same, GP_POLL_INTERVAL=0.05", "the same, GP_ENABLE_TUNNELING"
_COLUMNS = {PLAIN_JUPYTER: "{}/plain", "roost": "{}/roost", _TITLE: f"{{}}/{GATEWAY}"}
STARTS = PageTable(
    name="ssh_peer",
    columns={**_COLUMNS, _FAST_TITLE: f"{{}}/{FAST}", _TUNNEL_TITLE: f"{{}}/{TUNNELS}"},
    rows={
        "start (POST) → websocket → first reply": "start",
        "stop (DELETE) → answered": "stop",
        "stop → the kernel's processes have ended": "ended",
    },
    ratios={f"roost ÷ {_TITLE}": ("roost", _TITLE)},
    packages=("jupyter_server", "gateway_provisioners"),
)
LEFT = PageTable(
    name="ssh_peer-left",
    columns={**_COLUMNS, _TUNNEL_TITLE: f"{{}}/{TUNNELS}"},
    rows={
        "a running kernel: its processes of ssh here": "ssh here",
        "its ports on the network": "open ports",
        "kill -9 of Jupyter Server: the next server has the kernel": "server: kept",
        "processes that no server can stop": "server: left",
        f"kill -9 of a program, {LATER_S:g} s later: processes of its kernel": "program: left",
        "processes of ssh here": "program: ssh here",
        "kill -9 of all ssh: killed, at both ends": "ssh: killed",
        f"{SOON_S:g} s later: the next cell finds its variables": "ssh: kept",
        f"kernels that run {LATER_S:g} s after the only one was stopped": "ssh: left",
    },
    packages=("jupyter_server", "gateway_provisioners"),
    has_picture=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A running kernel, with the processes that it had at first."""

    id: str
    processes: Sequence[psutil.Process]

    def living(self) -> list[psutil.Process]:
        return [process for process in self.processes if lives(process)]

    def open_ports(self) -> int:
        """Return how many ports of the processes another machine can reach."""
        addresses = [address for process in self.living() for address in listening(process)]
        return sum(not address.startswith(_LOOPBACK) for address in addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The hosts, and the environment of each side's server."""

    hosts: SshHosts
    notebooks: Path
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @asynccontextmanager
    async def open_server(self, side: str, *, port: int = 0) -> AsyncIterator[JupyterServer]:
        """Run a server, with roost's extension if it is roost's."""
        option = f"--ServerApp.jpserver_extensions=roost={side == 'roost'}"
        variables = [f"{name}={value}" for name, value in self.variables.get(side, {}).items()]
        within = ("env", *variables)
        async with jupyter_server(self.notebooks, port=port, options=[option], within=within) as server:
            yield server

    def sessions(self, side: str) -> list[psutil.Process]:
        """Return the sshd of each open session of a side's user."""
        if side not in USERS:
            return []
        return [each for each in self.hosts.processes(user=USERS[side]) if name_of(each) == "sshd"]

    def kernels(self, side: str, kernel: Kernel) -> int:
        """Return how many kernels of a side run."""
        if side not in USERS:
            return bool(kernel.living())
        lines = [command_of(process) for process in self.hosts.processes(user=USERS[side])]
        if side == "roost":
            return sum("ipykernel" in line for line in lines)
        # The launcher forks a listener with the same command.
        return len({line.partition("--kernel-id ")[2][:36] for line in lines if "launch_ipykernel" in line})


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def listening(process: psutil.Process) -> list[str]:
    """Return the address of each port, as /proc/PID/net/tcp has it: that file is of the process's own network."""
    folder, sockets = Path(f"/proc/{process.pid}"), set()
    for file in (folder / "fd").iterdir():
        with suppress(OSError):  # it is closed meanwhile
            sockets.add(os.readlink(file))
    rows = [line.split() for line in (folder / "net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == _LISTENS and f"socket:[{row[9]}]" in sockets]


def name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def ssh_of(pid: int) -> list[psutil.Process]:
    """Return the processes of ssh that a process has started."""
    return [each for each in psutil.Process(pid).children(recursive=True) if name_of(each) == "ssh"]


def find_kernel(kernel_id: str, namespace: str, pid: int) -> Kernel:
    """Return the kernel that has this pid in a namespace of pids, which /proc/PID/ns/pid names."""
    for process in psutil.process_iter():
        with suppress(OSError):
            if os.readlink(f"/proc/{process.pid}/ns/pid") == namespace:
                status = Path(f"/proc/{process.pid}/status").read_text()
                (line,) = [each for each in status.splitlines() if each.startswith("NSpid:")]
                if int(line.split()[-1]) == pid:
                    return Kernel(id=kernel_id, processes=[process, *process.children(recursive=True)])
    raise LookupError(f"no process {pid} in {namespace}")


async def look(notebook: Notebook, kernel_id: str) -> Kernel:
    """Return a kernel with its processes. It runs a cell."""
    namespace, pid = (await notebook.run(_WHERE, "stream"))["text"].split()
    return find_kernel(kernel_id, namespace, int(pid))


def kernelspec_of(side: str) -> str:
    return side if side in ("plain", "roost") else GATEWAY


async def delete(server: JupyterServer, kernel_id: str) -> None:
    status, answer = await server.api("DELETE", f"kernels/{kernel_id}")
    if status != 204:
        raise RuntimeError(f"DELETE was answered with {status}: {answer}")


async def life(server: JupyterServer, side: str) -> tuple[dict[str, float], asyncio.Task[float]]:
    """Use one kernel. Return milliseconds by stage, and a task with those until its processes have ended."""
    await asyncio.sleep(REST_S)
    began = time.perf_counter()
    created = await post(server, "kernels", {"name": kernelspec_of(side)})
    async with open_notebook(server, created["id"]) as notebook:
        await notebook.run("1+1")
        took = {"start": elapsed_ms(began)}
        kernel = await look(notebook, created["id"])
    began = time.perf_counter()
    await delete(server, kernel.id)
    took["stop"] = elapsed_ms(began)
    return took, asyncio.create_task(until_ended(kernel, began))


async def until_ended(kernel: Kernel, began: float) -> float:
    """Wait until the processes have ended. After ENDED_S, kill them. Return milliseconds."""
    while kernel.living() and elapsed_ms(began) < ENDED_S * 1000:  # noqa: ASYNC110 - no event reports it
        await asyncio.sleep(0.05)
    took = elapsed_ms(began)
    kill(kernel.living())
    return took


async def measure_lives(report: Report, place: Place, rounds: int) -> None:
    ends: list[tuple[str, asyncio.Task[float]]] = []
    async with AsyncExitStack() as stack:
        servers = {side: await stack.enter_async_context(place.open_server(side)) for side in SIDES}
        for _ in range(3):  # at first no agent runs, and no zygote is warm
            await (await life(servers["roost"], "roost"))[1]
        for side, is_warm in take_turns("lives", SIDES, rounds=rounds, warm_up=2):
            took, end = await life(servers[side], side)
            if is_warm:
                ends.append((side, end))
                for stage, value in took.items():
                    report.add(f"{stage}/{side}", value, "ms")
        for side, end in ends:
            report.add(f"ended/{side}", await end, "ms")
    for stage in ("start", "stop", "ended"):
        report.compare(stage, ["roost", *(side for side in SIDES if side != "roost")])


async def lose_server(report: Report, place: Place, side: str) -> None:
    """Kill the server of a running kernel, and look whether the next one has the kernel."""
    async with place.open_server(side) as server:
        created = await post(server, "kernels", {"name": kernelspec_of(side)})
        async with open_notebook(server, created["id"]) as notebook:
            kernel = await look(notebook, created["id"])
            await notebook.run("kept = 41")
        report.add(f"ssh here/{side}", len(ssh_of(server.pid)), "processes")
        report.add(f"open ports/{side}", kernel.open_ports(), "ports")
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.sleep(SOON_S)
    async with place.open_server(side, port=server.port) as server:
        await asyncio.sleep(SOON_S)
        kept = await has_kept(server, kernel.id)
        report.add(f"server: kept/{side}", kept, "kernels")
        if kept:
            await delete(server, kernel.id)
        await asyncio.sleep(LATER_S)
    report.add(f"server: left/{side}", len(kernel.living()), "processes")
    kill(kernel.living())


async def lose_program(report: Report, place: Place, side: str) -> None:
    """Kill a program that has started a kernel, and count the processes that it leaves."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, kernelspec_of(side), _WHERE),
        env={**os.environ, **place.variables.get(side, {})},
        cwd=NEUTRAL,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert program.stdout is not None
    namespace, pid = (await asyncio.wait_for(program.stdout.readline(), REPLY_TIMEOUT_S)).decode().split()
    kernel = find_kernel("", namespace, int(pid))
    connections = ssh_of(program.pid)
    program.kill()
    await program.wait()
    await asyncio.sleep(LATER_S)
    report.add(f"program: left/{side}", len(kernel.living()), "processes")
    report.add(f"program: ssh here/{side}", sum(map(lives, connections)), "processes")
    kill(kernel.living())


async def lose_connections(report: Report, place: Place, side: str) -> None:
    """Kill all ssh of a running kernel, use it, stop it, and count the kernels that are left."""
    async with place.open_server(side) as server:
        created = await post(server, "kernels", {"name": kernelspec_of(side)})
        async with open_notebook(server, created["id"]) as notebook:
            kernel = await look(notebook, created["id"])
            await notebook.run("kept = 41")
        connections = [*ssh_of(server.pid), *place.sessions(side)]
        kill(connections)
        report.add(f"ssh: killed/{side}", len(connections), "processes")
        await asyncio.sleep(SOON_S)
        report.add(f"ssh: kept/{side}", await has_kept(server, kernel.id), "kernels")
        with suppress(RuntimeError):  # the server may have lost it
            await delete(server, kernel.id)
        await asyncio.sleep(LATER_S)
        report.add(f"ssh: left/{side}", place.kernels(side, kernel), "kernels")
    kill(kernel.living())


async def has_kept(server: JupyterServer, kernel_id: str) -> bool:
    """True if a new cell finds the variable of an earlier one."""
    try:
        async with open_notebook(server, kernel_id) as notebook:
            reply = await asyncio.wait_for(notebook.run("kept"), _ANSWER_S)
        return reply["status"] == "ok"
    except Exception as problem:  # noqa: BLE001 - the websocket may fail in any way
        print(f"There is no reply: {type(problem).__name__}: {problem}.", file=sys.stderr)
        return False


async def measure_faults(report: Report, place: Place, rounds: int) -> None:
    for _ in range(rounds):
        for faults in ([lose_server, lose_program], [lose_connections]):
            await asyncio.gather(*(fault(report, place, side) for side in FAULTY for fault in faults))
            for name in set(USERS.values()) - {USERS["roost"]}:
                kill(place.hosts.processes(user=name))


def claim(report: Report) -> None:
    report.claim(f"start: roost ÷ {GATEWAY}", at_most=MOST_OF_GATEWAY)
    for name in ("server: left/roost", "program: left/roost", "ssh: left/roost"):
        report.claim(name, at_most=0.0)


def install(folder: Path) -> None:
    """Install the kernelspec with the tool of Gateway Provisioners. `folder` becomes a Jupyter data folder."""
    tool = (sys.executable, "-m", "gateway_provisioners.cli.ssh_specapp", "install")
    environment = {**os.environ, "JUPYTER_DATA_DIR": str(folder)}
    options = ("--user", f"--kernel-name={GATEWAY}", "--log-level=WARN")
    subprocess.run((*tool, *options), env=environment, check=True, timeout=_INSTALL_S)
    file = folder / "kernels" / GATEWAY / "kernel.json"
    spec = json.loads(file.read_text())
    spec["argv"][0] = sys.executable  # it is `python`, which a login may lack
    file.write_text(json.dumps(spec))


def make_variables(hosts: SshHosts, folder: Path, side: str) -> dict[str, str]:
    """Return the variables of a server with Gateway Provisioners, and write the files for its logins to `folder`.

    paramiko reads keys and known hosts in HOME. The ssh of tunnels reads them where its configuration says.
    """
    user, login = USERS[side], folder / ".ssh"
    login.mkdir(parents=True)
    client = hosts.client(user)
    shutil.copy(client / "key", login / "id_ed25519")
    keys = dict(line.split(maxsplit=1) for line in (client / "known_hosts").read_text().splitlines())
    known = "".join(f"{hosts.address(name)} {key}\n" for name, key in keys.items())
    (login / "known_hosts").write_text(known)
    (login / "config").write_text(_SSH_CONFIG.format(user=user, folder=login))
    variables = {
        "HOME": str(folder),
        "GP_REMOTE_USER": user,
        "KERNEL_USERNAME": user,
        "GP_REMOTE_HOSTS": ",".join(map(hosts.address, hosts.names)),
        "GP_RESPONSE_IP": own_address(hosts.address("n1")),
    }
    if side == FAST:
        variables["GP_POLL_INTERVAL"] = "0.05"
    if side == TUNNELS:
        ssh = folder / "bin" / "ssh"
        ssh.parent.mkdir()
        ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {login}/config "$@"\n')
        ssh.chmod(0o755)
        variables |= {
            "PATH": f"{ssh.parent}{os.pathsep}{os.environ['PATH']}",
            "GP_ENABLE_TUNNELING": "true",
            "GP_TUNNEL_MAX_KEEP_ALIVE": str(_KEEP_ALIVE_S),
        }
    return variables


def own_address(peer: str) -> str:
    """Return the address of this machine that a peer reaches."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 22))  # sends nothing
        return str(probe.getsockname()[0])


@contextmanager
def prepare(specs: Path) -> Iterator[Place]:
    """Start the hosts, and write the private folders of all sides. `specs` has the kernelspec that is installed."""
    os.environ["JUPYTER_PATH"] = str(specs)
    with (
        private_world({"plain": PLAIN}, installed=[GATEWAY]) as root,
        SshHosts(len(RULES), rules=RULES) as hosts,
    ):
        spec = root / "jupyter_path" / "kernels" / "roost"
        write_kernelspec(spec, ROOST, {"backend": "ssh", "cpus": 1})
        write_config(root, {"RoostSshBackend": cluster_settings(hosts, USERS["roost"])})
        (root / "notebooks").mkdir()
        variables = {
            side: make_variables(hosts, root / f"home-{number}", side)
            for number, side in enumerate((GATEWAY, FAST, TUNNELS))
        }
        yield Place(hosts=hosts, notebooks=root / "notebooks", variables=variables)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    options.add_argument("--faults", type=int, help="repetitions of each fault (default 3, quick 1)")
    arguments = options.parse_args()
    if reason := why_not(len(RULES)):
        print(reason, file=sys.stderr)
        return SKIPPED
    if find_spec("gateway_provisioners") is None:
        print("Gateway Provisioners is not installed: pip install gateway_provisioners.", file=sys.stderr)
        return SKIPPED
    rounds, faults = read_rounds(arguments), arguments.faults or (1 if arguments.quick else 3)
    report = Report("beside Gateway Provisioners on SSH hosts", rounds=rounds, faults=faults)

    # The users of a host see the folder of this Python's virtual environment, and no other folder of this machine.
    with tempfile.TemporaryDirectory(prefix="ssh-peer-", dir=sys.prefix) as name:
        specs = Path(name)
        specs.chmod(0o755)
        install(specs)

        @contextmanager
        def prepared() -> Iterator[Measurement]:
            with prepare(specs) as place:

                async def measurement() -> None:
                    await measure_lives(report, place, rounds)
                    await measure_faults(report, place, faults)
                    claim(report)

                yield measurement

        return run(arguments, report, prepared())


if __name__ == "__main__":
    sys.exit(main())
