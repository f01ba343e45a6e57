"""jupyter_client's contract, fulfilled by the scheduler service: start, restart, signal, watch and end one kernel.

Three things differ from a provisioner that owns a process. Ports come back from the launch, which bound them, and a
restart asks for the same again. Exits are pushed (`Client.listen`), so that `poll` and `wait` ask nobody, and a
service or agent out of reach means a kernel that lives. And a kernel is kept by a lease: a restart stays within it,
only `cleanup(restart=False)` gives it back.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import shutil
import signal
import time
import uuid
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Any as AnyTrait
from traitlets import Bool, Dict, List, TraitError, Unicode

from roost.scheduler.client.client import Call, Client, connect
from roost.scheduler.client.identity import this_owner
from roost.scheduler.errors import BackendUnavailable, ConfigError, LaunchError, RoostError, UnknownKernel
from roost.scheduler.service.messages import Connection, Kernel, StartKernel

from .application import CommandNotFound, application, forget_failed_start, show_errors_in_jupyter
from .encryption import protect_channels
from .exit_watch import ExitWatch, KernelExit
from .kernel_connection import build_connection, choose_address, format_command, to_jupyter
from .kernel_environment import check_patterns, kernel_environment, working_directory
from .request_options import OPTIONS, Wish, check_backend_options, check_names, read_wish

_AWAY_S = 10.0
"""How long a shutdown or an undoing waits for a service that does not answer."""
_REPEAT_STOP_S = 300.0
"""How long the client goes on asking for it, in this process."""
_PROMPT_EXIT_S = 1.0
"""How long a shutdown waits for the pushed exit before jupyter_client's own loop looks every 0.1 s."""
_FAILED_START = 1
"""Exit code told for a restart that could not be done, where the kernel itself has none."""


class RoostProvisioner(KernelProvisionerBase):
    """Starts kernels through roost. The options are those of `metadata.kernel_provisioner.config` in a kernelspec."""

    backend = Unicode(
        "local", config=True, help="Cluster that runs the kernel: local, ray, dask, kubernetes, yarn, ssh."
    )
    cpus = AnyTrait(0, config=True, help="CPUs promised to the kernel; 0 promises none.")
    memory = AnyTrait(
        0, config=True, help="Memory promised to the kernel: '8GiB', '512MB', or bytes; 0 promises none."
    )
    gpus = AnyTrait(0, config=True, help="GPUs: a share of one (0.25) or a whole number.")
    gpu_models = AnyTrait((), config=True, help="GPU models that will do; empty: any.")
    labels = AnyTrait({}, config=True, help="Labels that the node must have.")
    near = AnyTrait({}, config=True, help="Labels that the node had better have.")
    resources = AnyTrait(
        {},
        config=True,
        help="Amounts of what else the cluster counts: {'licence': 1}, Ray's custom resources.",
    )
    tolerates = AnyTrait((), config=True, help="Taints of nodes on which the kernel may run all the same.")
    policy = Unicode("", config=True, help="Placement policy by name; empty: the operator's default.")
    encrypt = Unicode(
        "auto",
        config=True,
        help="CURVE on the kernel's TCP ports: 'auto' (where it can), 'never', 'required'.",
    )
    fork = Bool(
        True,
        config=True,
        help="Whether the kernel may be forked from a warm process instead of started anew.",
    )
    launch_timeout = AnyTrait(None, config=True, help="Seconds for queueing and launching together.")
    environment = List(
        Unicode(), config=True, help="More names (or patterns) of variables that kernels on other nodes get."
    )
    backend_options = Dict(
        config=True,
        help="Options of `roost.connect`, such as declared totals; a kernelspec can only name the cluster's `address`.",
    )

    def __init__(self, **kwargs: Any) -> None:
        given = set(kwargs) - {"kernel_id", "kernel_spec", "parent", "config", "log"}
        with show_errors_in_jupyter(kwargs.get("parent")):
            check_names(given)
            own = kwargs.pop("backend_options", {})  # besides those of the application, not in their stead
            try:
                super().__init__(**kwargs)
            except TraitError as problem:
                raise ConfigError(f"{problem}") from None
            if own:
                check_backend_options(self.backend, own)
                self.backend_options = {**self.backend_options, **own}
        self._client: Client | None = None
        self._wish: Wish | None = None
        self._connection = Connection()
        self._exit: KernelExit | None = (
            None  # what `poll` and `wait` look at: of the kernel that was started last
        )
        self._exits = ExitWatch(self.log, self._is_end_expected)  # set as events come
        self._stopping: Call[Kernel] | None = None
        self._node_id = ""
        self._pid = 0
        self._has_lease = False
        self._is_ending = False
        self._cwd: str | None = None
        self._waited_s = 0.0

    # What jupyter_client asks for, in the order of a kernel's life

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Build command, environment and connection; ports stay 0, for the kernel to choose, unless there are some."""
        extra_arguments = kwargs.pop("extra_arguments", None) or []
        kwargs.pop("transport_encryption", None)
        km = self.parent
        with show_errors_in_jupyter(km):
            if km is None:
                argv = [*self.kernel_spec.argv, *extra_arguments]
            else:
                argv = format_command(km, extra_arguments)
                self._protect(km, argv)
                choose_address(km, self._id, is_local=self.backend == "local")
            kwargs = await super().pre_launch(cmd=argv, **kwargs)
            check_patterns(self.environment)
            self._wish = read_wish({name: getattr(self, name) for name in OPTIONS}, kwargs["env"])
            if km is not None:
                self._connection = build_connection(km, kwargs["env"].get("JPY_SESSION_NAME", ""))
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel and return where it listens.

        A first start that fails is undone and raises. A restart that fails does not raise: `poll` then gives an exit
        code, so that Jupyter's restarter counts the attempt, and in the end says *dead*.
        """
        env, cwd = kwargs.pop("env"), kwargs.pop("cwd", None)
        if kwargs:
            self.log.debug("kernel=%s not used: %s", self.kernel_id, ", ".join(sorted(kwargs)))
        with show_errors_in_jupyter(self.parent):
            return await self._launch(cmd, env, cwd)

    @property
    def has_process(self) -> bool:
        """Whether there is a kernel, or one whose end nobody has waited for yet."""
        return self._exit is not None

    async def poll(self) -> int | None:
        """None while the kernel lives as far as is known, else its exit code; asks nobody.

        While a launch is under way there is no kernel yet: nobody knows its ports.
        """
        return 0 if self._exit is None else self._exit.code

    async def wait(self) -> int | None:
        """Wait for the kernel's end; afterwards `has_process` is false."""
        ending = self._exit
        if ending is None:
            return 0
        code = await ending.wait()
        if self._exit is ending:
            self._exit = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Send `signum` to the kernel's process group; nothing happens when it is gone."""
        ending = self._exit
        if ending is None or ending.code is not None:
            return
        try:
            await self._service().signal(self._id, signum)
        except UnknownKernel:
            self._exits.gone(ending)
        except BackendUnavailable as problem:
            if not getattr(self.parent, "shutting_down", False):
                raise
            self.log.warning("kernel=%s signal %d not sent: %s", self._id, signum, problem)

    async def kill(self, restart: bool = False) -> None:
        """SIGKILL, and a moment for the news of its effect."""
        await self._end_by(signal.SIGKILL, wait_s=_PROMPT_EXIT_S)

    async def terminate(self, restart: bool = False) -> None:
        """SIGTERM."""
        await self._end_by(signal.SIGTERM, wait_s=0.0)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Wait here for a prompt exit, since jupyter_client's own loop looks only every 0.1 s."""
        self._is_ending = True
        started = time.monotonic()
        if self._exit is not None:
            await self._exit.wait(_PROMPT_EXIT_S)
        self._waited_s = time.monotonic() - started
        control = getattr(self.parent, "_control_socket", None)
        if (
            control is not None
        ):  # or the request that a dead kernel did not read ends its successor on the same port
            control.linger = 0

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """What is recommended, less what `shutdown_requested` has waited."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return max(0.1, recommended - waited_s) if recommended > 0 else recommended

    async def cleanup(self, restart: bool = False) -> None:
        """Give the lease back, ending the kernel if it still runs; nothing when a restart follows. May be repeated."""
        if restart or not self._has_lease:
            return
        self._is_ending = True
        code: int | None = 0
        try:
            self._stopping = self._service().stop(self._id, grace_s=1.0, repeat_s=_REPEAT_STOP_S)
            code = (await self._stopping.within(_AWAY_S)).exit_code
        except UnknownKernel:
            pass
        except RoostError as problem:
            self.log.warning("kernel=%s its lease could not be given back now: %s", self._id, problem)
        except asyncio.TimeoutError:
            self.log.warning(
                "kernel=%s its lease is not given back yet: the scheduler is away, and is asked again for %g s",
                self._id, _REPEAT_STOP_S,
            )  # fmt: skip
        self._has_lease = False
        self._exits.unfollow()
        self._exits.current.set(code)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What `load_provisioner_info` needs, in this or another process."""
        info = await super().get_provisioner_info()
        info.update(backend=self.backend, backend_options=self._service().options)
        info.update(
            launch_id=self._exits.current.launch_id, node_id=self._node_id, pid=self._pid, cwd=self._cwd
        )
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take over the kernel that `provisioner_info` names, for this application; if it is gone, `poll` says so."""
        await super().load_provisioner_info(provisioner_info)
        self.backend = provisioner_info["backend"]
        self.backend_options = provisioner_info.get("backend_options", {})
        self._cwd = provisioner_info.get("cwd")
        self._client = None
        self._exit = self._exits.begin(self._id, provisioner_info["launch_id"])
        self._has_lease = True
        self._is_ending = False
        self._exits.unfollow()
        self._exits.follow(self._service())
        try:
            kernel = await self._service().adopt(self._id, this_owner("", *application(self.parent)))
        except UnknownKernel:
            self._exits.gone(self._exit)
            return
        if kernel.launch_id != provisioner_info["launch_id"]:
            self._exits.begin(self._id, kernel.launch_id)
        self._started(kernel)

    def resolve_path(self, path: str) -> str | None:
        """`path` as the kernel sees it, if that is a file of this machine."""
        if self.backend != "local":
            return None
        found = pathlib.Path(path).expanduser()
        if not found.is_absolute() and self._cwd:
            found = (pathlib.Path(self._cwd) / found).resolve()
        return found.as_posix() if found.exists() else None

    # Launching

    @property
    def _id(self) -> str:
        return cast(str, self.kernel_id)

    def _service(self) -> Client:
        if self._client is None:
            self._client = connect(self.backend, **self.backend_options)
        return self._client

    def _protect(self, km: Any, argv: list[str]) -> None:
        warning = protect_channels(km, argv, self.encrypt, is_local=self.backend == "local")
        if warning and not self._has_lease:
            self.log.warning("kernel=%s %s", self._id, warning)

    async def _launch(self, cmd: list[str], env: dict[str, str], cwd: Any) -> KernelConnectionInfo:
        is_restart = self._has_lease
        is_local = self.backend == "local"
        wish = self._wish or read_wish({name: getattr(self, name) for name in OPTIONS}, env)
        owner = this_owner(env.get("KERNEL_USERNAME", ""), *application(self.parent))
        self._cwd = working_directory(env, os.fspath(cwd) if cwd else None, is_local=is_local)
        start = StartKernel(
            kernel_id=self._id,
            launch_id=uuid.uuid4().hex,
            request=wish.request,
            owner=owner,
            argv=tuple(os.path.expanduser(argument) if is_local else argument for argument in cmd),
            env=kernel_environment(
                env, spec_env=self.kernel_spec.env, is_local=is_local, also=self.environment
            ),
            cwd=self._cwd,
            connection=self._connection,
            may_fork=self.fork,
            launch_timeout_s=wish.launch_timeout_s,
        )
        if self._stopping is not None:
            self._stopping.cancel()  # or it could end what is started now
        watched = self._exits.begin(self._id, start.launch_id)
        self._exits.is_launching, self._is_ending = True, False
        self._exits.follow(self._service())
        self._has_lease = True
        try:
            kernel = await self._service().start(start)
        except RoostError as problem:
            if not is_restart:
                await self._undo(start.launch_id)
                is_missing = is_local and not shutil.which(start.argv[0], path=env.get("PATH"))
                if type(problem) is LaunchError and is_missing:
                    raise CommandNotFound(problem.user_message, **problem.fields) from None
                raise
            code = problem.fields.get("exit_code")
            self.log.error("kernel=%s could not be started again: %s", self._id, problem)
            self._exit = watched
            self._exit.set(code if isinstance(code, int) else _FAILED_START)
            return self.connection_info
        except BaseException:
            if is_restart:
                self._exit = watched
                self._exit.set(_FAILED_START)
            else:
                await asyncio.shield(self._undo(start.launch_id))
            raise
        finally:
            self._exits.is_launching = False
        self._started(kernel)
        return self.connection_info

    def _started(self, kernel: Kernel) -> None:
        self._exit = self._exits.current
        self._node_id, self._pid = kernel.node_id, kernel.pid
        if kernel.connection is not None:
            self.connection_info = to_jupyter(kernel.connection)
            if kernel.connection.transport == "ipc" and self.parent is not None:
                self.connection_info["ip"] = self.parent.ip  # may be relative
        if kernel.state == "exited":
            self._exits.read(self._exit, kernel)
        else:
            self.log.info(
                "kernel=%s node=%s %s as pid %d %s", self._id, kernel.node_id, kernel.how, kernel.pid,
                " ".join(f"{stage}={ms:.0f}ms" for stage, ms in kernel.timing_ms.items()),
            )  # fmt: skip

    async def _undo(self, launch_id: str) -> None:
        """Take a first start back, and nothing else: a kernel of this id may be somebody else's."""
        self._exits.unfollow()
        self._exit = None
        self._has_lease = False
        forget_failed_start(self.parent)
        try:
            await self._service().cancel(self._id, launch_id).within(_AWAY_S)
        except (RoostError, asyncio.TimeoutError) as problem:
            self.log.warning("kernel=%s its start could not be undone now: %s", self._id, problem)

    # The end of the kernel

    def _is_end_expected(self) -> bool:
        return self._is_ending or bool(getattr(self.parent, "shutting_down", False))

    async def _end_by(self, signum: int, wait_s: float) -> None:
        self._is_ending = True
        try:
            await asyncio.wait_for(self.send_signal(signum), _AWAY_S)
        except (RoostError, asyncio.TimeoutError) as problem:
            self.log.warning("kernel=%s signal %d not sent: %s", self._id, signum, problem)
            return
        if self._exit is not None and wait_s:
            await self._exit.wait(wait_s)
