"""RoostProvisioner: jupyter_client starts, restarts, signals, watches and stops one kernel through it.

The launch reports the ports that the kernel binds. A restart asks for the same ports and keeps the kernel's lease. The
service reports the kernel's exit by itself, so `poll` and `wait` send no request. A kernel that cannot be reached
counts as alive.
"""

from __future__ import annotations

import asyncio
import math
import os
import pathlib
import shutil
import signal
import time
import uuid
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Any as AnyTrait
from traitlets import Bool, Dict, Enum, List, TraitError, Unicode

from roost.placement.model import Request
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.client.client import Call, Client, connect
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.config.trait_errors import describe_refusal
from roost.scheduler.errors import (
    BackendUnavailable,
    ConfigError,
    LaunchError,
    RoostError,
    UnknownKernel,
)
from roost.scheduler.messages import (
    UNKNOWN,
    Connection,
    Kernel,
    StartKernel,
    hide_output,
    read_context,
)

from .application import (
    CommandNotFound,
    choose_start_level,
    choose_watch_log,
    describe_application,
    find_holder,
    find_queue_timeout_s,
    is_adopted,
    show_errors_in_jupyter,
)
from .encryption import WISHES, check_channels, protect_channels
from .exit_watch import ExitWatch, KernelExit, describe_wait
from .jupyter_internals import drop_unread_requests
from .kernel_connection import (
    build_connection,
    choose_address,
    choose_connection_folder,
    format_command,
    hurry_clients,
    load_connection,
    to_jupyter,
)
from .kernel_environment import (
    build_environment,
    check_patterns,
    check_variables,
    choose_directory,
    limit_gpus,
)
from .kernel_json import check_spec
from .request_options import OPTIONS, StartOptions, check_backend_options, check_names, read_start_options
from .spark_mode import check_deploy_mode

_NO_ANSWER_S = 10.0
"""How long a shutdown, or the undoing of a start, waits for a service that does not answer."""
_REPEAT_STOP_S = 300.0
"""How long the client repeats the request to stop a kernel in the background."""
_PROMPT_EXIT_S = 1.0
"""How long a shutdown waits for the report of the exit. After that, jupyter_client polls every 0.1 s."""
_ADOPT_AGAIN_S = 2.0
"""How long an adoption waits before it asks again for a kernel that is out of reach."""
_LOG_WAIT_S = 10.0
"""The least time between two lines in the log about one queued start."""
_FAILED_START = 1
"""Exit code after a failed restart, if the kernel itself has none."""


class RoostProvisioner(KernelProvisionerBase):
    """A provisioner that starts kernels through roost. Its traits are the keys of a kernelspec's `config`."""

    backend = Unicode(DEFAULT_BACKEND, config=True, help="Name of the backend whose cluster runs the kernel.")
    cpus = AnyTrait(0, config=True, help="CPUs promised to the kernel; 0 promises none.")
    memory = AnyTrait(0, config=True, help="Memory promised to the kernel: '8GiB' or bytes; 0 promises none.")
    gpus = AnyTrait(0, config=True, help="GPUs: a share of one (0.25) or a whole number.")
    gpu_models = AnyTrait((), config=True, help="Accepted GPU models; empty accepts any.")
    gpu_memory = AnyTrait(0, config=True, help="Least memory of each GPU: '40GiB' or bytes; 0 accepts any.")
    labels = AnyTrait({}, config=True, help="Required node labels.")
    near = AnyTrait({}, config=True, help="Preferred node labels: nodes with more of them rank higher.")
    resources = AnyTrait({}, config=True, help="Custom resources of the cluster: {'licence': 1}.")
    tolerates = AnyTrait((), config=True, help="Node taints that the kernel tolerates.")
    policy = Unicode("", config=True, help="Name of the placement policy; empty: the operator's default.")
    enforce = Enum(
        ("", "auto", "required"), "", config=True, help="`required`: start only where limits can be enforced."
    )
    options = AnyTrait({}, config=True, help="Options for this kernel; each backend has its own.")
    encrypt = Enum(WISHES, "auto", config=True, help="CURVE encryption: 'auto' encrypts if the kernel can.")
    fork = Bool(True, config=True, help="True if the kernel may be forked from a warm process.")
    launch_timeout = AnyTrait(None, config=True, help="Seconds for the queue and the launch together.")
    environment = List(Unicode(), config=True, help="More variables for kernels on other nodes, or patterns.")
    backend_options = Dict(config=True, help="Options of `roost.connect`; a kernelspec has only `address`.")

    def __init__(self, **kwargs: Any) -> None:
        given = set(kwargs) - {"kernel_id", "kernel_spec", "parent", "config", "log"}
        with show_errors_in_jupyter(kwargs.get("parent")):
            check_names(given)
            own = kwargs.pop("backend_options", {})  # added to the application's own, not replacing them
            try:
                super().__init__(**kwargs)
            except TraitError as problem:
                raise ConfigError(describe_refusal(problem, type(self), kwargs)) from None
            if "backend_options" in given:
                check_backend_options(self.backend, own)
                self.backend_options = {**self.backend_options, **own}
        self.kernel: Kernel | None = None  # as the service described it after its latest launch
        self._client: Client | None = None
        self._options: StartOptions | None = None
        self._connection = Connection()
        self._exit: KernelExit | None = None  # of the latest launch, for `poll` and `wait`
        self._turn = asyncio.Lock()  # two restarts at once launch one after the other
        self._restarting: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        """The tasks that restart the kernel and have not launched it yet."""
        watch_log = choose_watch_log(self.parent, self.log)
        self._exits = ExitWatch(watch_log, self._is_end_expected, self._note_waiting)  # set by events
        self.waiting: Kernel | None = None
        """The kernel as the service last described it, while its start runs."""
        self._logged_wait: tuple[float, str] = (-math.inf, "")
        self._stopping: Call[Kernel] | None = None
        self._has_lease = False
        self._is_ending = False
        self._ends_for_good = False
        self._is_silent = False
        """True if the latest signal was not sent, because the kernel's agent or the service does not answer."""
        self._cwd: str | None = None
        self._waited_s = 0.0
        self.unheld_s: float | None = None
        """Seconds without a holder before this process adopted the kernel; None if that time is not known."""

    # jupyter_client's interface, in the order of a kernel's life

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Build the command, the environment and the connection. Return the arguments of `launch_kernel`.

        For a port that is 0, the launch chooses a free one. Raises `ConfigError`, as an HTTPError in Jupyter
        Server.
        """
        extra_arguments = kwargs.pop("extra_arguments", None) or []
        kwargs.pop("transport_encryption", None)
        km = self.parent
        with show_errors_in_jupyter(km):
            check_spec(self.kernel_spec)
            if km is None:
                argv = [*self.kernel_spec.argv, *extra_arguments]
            else:
                argv = format_command(km, extra_arguments)
                spec = get_spec(self.backend)
                if spec.has_agent_per_kernel:
                    # A pod has a Python of its own. jupyter_client has put this process's for `python`.
                    argv[0] = self.kernel_spec.argv[0]
                warning = protect_channels(
                    km,
                    argv,
                    "required" if self.service.is_of_another_user else self.encrypt,
                    is_local=self._is_local,
                    requiring_backend=spec.name if spec.requires_encryption else "",
                )
                if warning and not self._has_lease:
                    self.log.warning("kernel=%s %s", self._id, warning)
                choose_address(km, self._id, is_local=self._is_local)
                hurry_clients(km)
            env = {
                **kwargs.pop("env", os.environ),
                "KERNEL_ID": self._id,
            }  # for `${KERNEL_ID}` in the kernelspec's env
            kwargs = await super().pre_launch(cmd=argv, env=env, **kwargs)
            check_patterns(self.environment)
            check_variables(self.kernel_spec.env)
            self._options = self._read_options(kwargs["env"])
            if km is not None:
                self._connection = build_connection(km, kwargs["env"].get("JPY_SESSION_NAME", ""))
        return kwargs

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel and return its connection.

        If the first start fails, this undoes it and raises the error. If a restart fails, this raises no
        `RoostError`: `poll` then returns an exit code. Jupyter's restarter tries again, and finally reports
        *dead*. If nobody knows whether the earlier process has ended, `poll` returns None until its end is known.
        """
        env, cwd = kwargs.pop("env"), kwargs.pop("cwd", None)
        if kwargs:
            self.log.debug("kernel=%s unused arguments: %s", self.kernel_id, ", ".join(sorted(kwargs)))
        with show_errors_in_jupyter(self.parent):
            is_restart = self._take_restart()
            async with self._turn:
                if is_restart and not self._has_lease:
                    self.log.info("kernel=%s was shut down while it was restarted", self._id)
                    self._exit = self._exits.current
                    return self.connection_info
                if is_restart and not self.has_ended and not self._is_silent:
                    # Another restart has started it.
                    await self._end_by(signal.SIGKILL, wait_s=_PROMPT_EXIT_S)
                return await self._launch(cmd, env, cwd)

    def _take_restart(self) -> bool:
        """Return whether this task restarts the kernel. Forget it, because its launch follows, or its shutdown."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        is_restart = task in self._restarting
        self._restarting.discard(task)
        return is_restart

    @property
    def has_process(self) -> bool:
        """True if there is a kernel, or if nobody has waited for the end of the last one."""
        return self._exit is not None

    @property
    def has_ended(self) -> bool:
        """True if the latest launch has ended or failed, as far as is known."""
        return self._exit is None or self._exit.code is not None

    async def poll(self) -> int | None:
        """Return the exit code, None while the kernel lives as far as is known, or 0 before it was launched."""
        return 0 if self._exit is None else self._exit.code

    async def wait(self) -> int | None:
        """Wait for the kernel's end and return its exit code, or 0 without a kernel; `has_process` is then false."""
        ending = self._exit
        if ending is None:
            return 0
        code = await ending.wait()
        if self._exit is ending:
            self._exit = None
        return code

    async def send_signal(self, signum: int) -> None:
        """Send `signum` to the kernel's process group; do nothing if the kernel has ended.

        Raises a `RoostError` if the kernel is out of reach, except while the server shuts it down.
        """
        ending = self._exit
        if ending is None or ending.code is not None:
            return
        try:
            await self.service.signal(self._id, signum)
            self._is_silent = False
        except UnknownKernel:
            self._exits.mark_unknown(ending)
        except RoostError as problem:  # the next service may find a wrong setting
            self._is_silent = True
            if not getattr(self.parent, "shutting_down", False):
                with show_errors_in_jupyter(self.parent):
                    raise
            self.log.warning("kernel=%s signal %d was not sent: %s", self._id, signum, problem)

    async def kill(self, restart: bool = False) -> None:
        await self._end_by(signal.SIGKILL, wait_s=_PROMPT_EXIT_S)

    async def terminate(self, restart: bool = False) -> None:
        await self._end_by(signal.SIGTERM, wait_s=0.0)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Wait for the exit for a moment, because jupyter_client's own loop polls only every 0.1 s."""
        self._is_ending, self._ends_for_good = True, not restart
        started = time.monotonic()
        if self._exit is not None:
            await self._exit.wait(_PROMPT_EXIT_S)
        self._waited_s = time.monotonic() - started
        drop_unread_requests(self.parent)

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Return the recommended time, minus the time that `shutdown_requested` has waited."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return max(0.1, recommended - waited_s) if recommended > 0 else recommended

    async def cleanup(self, restart: bool = False) -> None:
        """Stop the kernel if it still runs, and give its lease back. May be repeated.

        If `restart` is true, this only notes the restart, because the restarted kernel keeps the lease.
        """
        if restart:
            self._restarting.add(cast("asyncio.Task[Any]", asyncio.current_task()))
            return
        self._take_restart()
        if not self._has_lease:
            return
        self._is_ending, self._has_lease = True, False
        code: int | None = 0
        try:
            self._stopping = self.service.stop(self._id, grace_s=1.0, repeat_s=_REPEAT_STOP_S)
            code = (await self._stopping.within(_NO_ANSWER_S)).exit_code
        except UnknownKernel:
            pass
        except RoostError as problem:
            self.log.warning("kernel=%s its lease could not be given back: %s", self._id, problem)
        except asyncio.TimeoutError:
            what = "its lease is not back yet; the stop is repeated"
            self.log.warning(
                "kernel=%s the scheduler does not answer: %s for %g s", self._id, what, _REPEAT_STOP_S
            )
        except asyncio.CancelledError:
            self._has_lease = True
            raise
        self._exits.unfollow()
        self._exits.current.set(code)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return what `load_provisioner_info` needs, in this process or another one."""
        info = await super().get_provisioner_info()
        info.update(backend=self.backend, backend_options=self.service.options)
        node_id, pid = (self.kernel.node_id, self.kernel.pid) if self.kernel else ("", 0)
        info.update(launch_id=self._exits.current.launch_id, node_id=node_id, pid=pid, cwd=self._cwd)
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Adopt the kernel in `provisioner_info`. If the kernel has ended, `poll` returns its exit code."""
        await super().load_provisioner_info(provisioner_info)
        self.backend = provisioner_info["backend"]
        self.backend_options = provisioner_info.get("backend_options", {})
        self._cwd = provisioner_info.get("cwd")
        self._client = None
        self._exit = self._exits.begin(self._id, provisioner_info["launch_id"])
        self._has_lease, self._is_ending = True, False
        self._exits.unfollow()
        self._exits.follow(self.service)
        try:
            kernel = await self.service.adopt(self._id, this_owner("", *describe_application(self.parent)))
        except UnknownKernel:
            self._exits.mark_unknown(self._exit)
            return
        if kernel.launch_id != provisioner_info["launch_id"]:
            self._exits.begin(self._id, kernel.launch_id)
        self._started(kernel)

    def resolve_path(self, path: str) -> str | None:
        """Return `path` as the kernel sees it, or None for a missing path or a kernel on another machine."""
        if not self._is_local:
            return None
        found = pathlib.Path(path).expanduser()
        if not found.is_absolute() and self._cwd:
            found = (pathlib.Path(self._cwd) / found).resolve()
        return found.as_posix() if found.exists() else None

    async def adopt(self, start: StartKernel) -> KernelConnectionInfo:
        """Take over the running or starting kernel of this id, and return its connection.

        `start` is the request for a start that is still under way. This waits while the kernel is out of
        reach. Raises `UnknownKernel` if the kernel has ended, and `HeldElsewhere` if another application
        holds it.
        """
        self._is_ending, self._has_lease = False, True
        self._exits.begin_launch()
        self._exits.begin(self._id, "")
        self._exits.follow(self.service)
        try:
            kernel = self._check(await self._find_adopted(start))
            if kernel.state == "exited":
                raise UnknownKernel(kernel.reason or "it has ended", kernel_id=self._id)
        except BaseException:
            self._exits.unfollow()
            self._exit, self._has_lease = None, False
            raise
        finally:
            self._exits.finish_launch()
            self.waiting = None
        self._exits.begin(self._id, kernel.launch_id)
        self._started(kernel)
        load_connection(self.parent, self.connection_info)
        return self.connection_info

    def let_go(self) -> None:
        """Give up the kernel, or its start, without ending it. Another application can adopt it."""
        self._exits.unfollow()
        self._has_lease = False

    async def _find_adopted(self, start: StartKernel) -> Kernel:
        while True:
            try:
                # The files of a server may name any kernel: one that another application holds stays there.
                kernel = await self.service.adopt(self._id, start.owner, takes_away=False)
            except (BackendUnavailable, ConfigError) as problem:  # no service can start yet
                self.log.warning("kernel=%s is out of reach: %s", self._id, problem)
            else:
                self.unheld_s = kernel.unheld_s
                if kernel.state in ("queued", "starting"):
                    self._exits.begin(self._id, kernel.launch_id)
                    self._note_waiting(kernel)
                    return await self.service.start(replace(start, launch_id=kernel.launch_id))
                if kernel.connection is not None or kernel.state == "exited":
                    return kernel
                self._note_waiting(kernel)
            await asyncio.sleep(_ADOPT_AGAIN_S)

    # Launching

    @property
    def _id(self) -> str:
        return cast(str, self.kernel_id)

    @property
    def _is_local(self) -> bool:
        return get_spec(self.backend).runs_on_this_machine

    @property
    def service(self) -> Client:
        if self._client is None:
            holder = find_holder(self.parent)
            found = None if holder is None else holder.find_client(self._id, self.backend)
            self._client = found or connect(self.backend, **self.backend_options)
        return self._client

    @property
    def _shares_user(self) -> bool:
        """True if the kernel runs on this machine as this process's user."""
        return self._is_local and not self.service.is_of_another_user

    @property
    def request(self) -> Request:
        """What the next launch asks for. Valid after `pre_launch`."""
        assert self._options is not None
        return self._options.request

    def _read_options(self, env: Mapping[str, str]) -> StartOptions:
        options = {name: getattr(self, name) for name in OPTIONS}
        found = read_start_options(options, env)
        own = build_environment(env, self.kernel_spec.env, is_local=self._shares_user, also=self.environment)
        return replace(found, request=limit_gpus(found.request, self.backend, own))

    async def _launch(self, cmd: list[str], env: dict[str, str], cwd: Any) -> KernelConnectionInfo:
        is_restart, is_local = self._has_lease, self._shares_user
        options = self._options or self._read_options(env)
        if self.service.is_of_another_user:  # without a folder of theirs, the kernel starts in their home
            self._cwd = env.get("KERNEL_WORKING_DIR", "")
        else:
            self._cwd = choose_directory(env, os.fspath(cwd) if cwd else None, is_local=is_local)
        start = StartKernel(
            kernel_id=self._id,
            launch_id=uuid.uuid4().hex,
            request=options.request,
            owner=this_owner(env.get("KERNEL_USERNAME", ""), *describe_application(self.parent)),
            argv=tuple(os.path.expanduser(argument) if is_local else argument for argument in cmd),
            env=build_environment(env, self.kernel_spec.env, is_local=is_local, also=self.environment),
            cwd=self._cwd,
            connection=self._connection,
            may_fork=self.fork,
            context=read_context() if is_local else UNKNOWN,
            connection_folder=choose_connection_folder() if is_local else "",
            is_of_another_user=self.service.is_of_another_user,
            launch_timeout_s=options.launch_timeout_s,
            queue_timeout_s=find_queue_timeout_s(self.parent),
        )
        if not is_restart and is_adopted(self.parent, self._id):
            return await self.adopt(start)
        if not self._is_local:
            check_deploy_mode(start.argv, start.env)
        if self._stopping is not None:
            self._stopping.cancel()  # or it could stop the kernel that is started now
        before, watched = self._exit, self._exits.begin(self._id, start.launch_id)
        self._is_ending = self._ends_for_good = False
        self._exits.begin_launch()
        self._exits.follow(self.service)
        self._has_lease = True
        try:
            kernel = self._check(await self.service.start(start))
        except BaseException as problem:
            is_silent = isinstance(problem, BackendUnavailable) or (
                self._is_silent and isinstance(problem, ConfigError)  # no service can start
            )
            if is_restart and is_silent and before is not None and before.code is None:
                self._exits.finish_launch()
                self._exits.resume(self.service, before)
                self._exits.last_reason = f"the kernel could not be restarted: {problem}"
                why = f"{hide_output(problem)} Jupyter starts it again when its end is known."
                self.log.error("kernel=%s was not restarted: %s", self._id, why)
                return self.connection_info
            if is_restart:
                code = problem.fields.get("exit_code") if isinstance(problem, RoostError) else None
                self._exit, self._exits.last_reason = watched, f"the kernel could not be restarted: {problem}"
                self._exit.set(_FAILED_START if code is None else code)
                if not isinstance(problem, RoostError):
                    raise
                self.log.error("kernel=%s could not be restarted: %s", self._id, hide_output(problem))
                return self.connection_info
            await asyncio.shield(self._undo(start.launch_id))
            is_missing = is_local and not shutil.which(start.argv[0], path=env.get("PATH"))
            if type(problem) is LaunchError and is_missing:
                raise CommandNotFound(problem.user_message, **problem.fields) from None
            raise
        finally:
            ended, self.waiting = self._exits.finish_launch(), None
        self._started(kernel)
        if ended is not None:
            self._exits.read(watched, ended)
        return self.connection_info

    def _check(self, kernel: Kernel) -> Kernel:
        """Return a kernel whose channels may be connected with. Raises `LaunchError`."""
        if self.service.is_of_another_user and kernel.connection is not None:
            check_channels(kernel.connection, is_local=self._is_local)
        return kernel

    def _started(self, kernel: Kernel) -> None:
        self._exit = self._exits.current
        self._exits.prospect = kernel.prospect
        self.kernel = kernel
        if kernel.connection is not None:
            self.connection_info = to_jupyter(kernel.connection)
            if kernel.connection.transport == "ipc" and self.parent is not None:
                self.connection_info["ip"] = self.parent.ip  # may be relative
        if kernel.state == "exited":
            self._exits.read(self._exit, kernel)
        else:
            self.log.log(
                choose_start_level(self.parent), "kernel=%s node=%s %s as pid %d %s%s",
                self._id, kernel.node_id, kernel.how, kernel.pid,
                " ".join(f"{stage}={ms:.0f}ms" for stage, ms in kernel.timing_ms.items()),
                f"; not forked, because {kernel.why_not_forked}" if kernel.why_not_forked else "",
            )  # fmt: skip

    def _note_waiting(self, kernel: Kernel) -> None:
        """Record the state of a waiting start, and log it at most every 10 s: queue positions change often."""
        self.waiting = kernel
        holder = find_holder(self.parent)
        if holder is not None:
            holder.note_waiting(self._id)
        logged_at, logged = self._logged_wait
        told = describe_wait(kernel)
        if (
            kernel.state == "queued"
            and kernel.waits_for
            and told != logged
            and time.monotonic() - logged_at >= _LOG_WAIT_S
        ):
            self._logged_wait = time.monotonic(), told
            self.log.info("kernel=%s %s", self._id, told)

    async def check_reachable(self) -> None:
        """Raise a `RoostError` if nobody can end the kernel now."""
        if self._exit is None or self._exit.code is not None:
            return
        with suppress(UnknownKernel):
            await self.service.signal(self._id, 0)

    @property
    def launch_id(self) -> str:
        """The id of the latest launch. A restart sets a new id as soon as the old process has ended."""
        return self._exits.current.launch_id

    @property
    def is_launching(self) -> bool:
        """True from the beginning of a launch until the kernel runs, or until the launch has failed."""
        return self._exits.is_launching

    @property
    def end_reason(self) -> str:
        """The reason of the kernel's latest end or failed restart, as a clause; empty if it has not ended."""
        return self._exits.last_reason

    @property
    def prospect(self) -> str:
        """What will end the kernel soon, as a clause; empty if nothing is known that would."""
        return self._exits.prospect

    def why_not_restart(self) -> str:
        """Return the reason why Jupyter must not restart the ended kernel automatically; empty if it may.

        There is a reason if the kernel was stopped or culled, or ran out of memory twice in a row. The second reason
        resets the count of launches that ran out of memory.
        """
        if self._exit is None or self._exit.code is None:
            return ""
        if self._exits.was_stopped:
            return self._exits.last_reason
        if self._exits.excesses > 1:
            self._exits.excesses = 0
            return "it ran out of memory twice"
        return ""

    async def _undo(self, launch_id: str) -> None:
        """Cancel a failed start, but only this launch: another application may have a kernel of the same id."""
        self._exits.unfollow()
        self._exit, self._has_lease = None, False
        try:
            await self.service.cancel(self._id, launch_id).within(_NO_ANSWER_S)
        except (RoostError, asyncio.TimeoutError) as problem:
            why = str(problem) or f"no answer for {_NO_ANSWER_S:g} s, and the service goes on"
            self.log.warning("kernel=%s its start could not be undone: %s", self._id, why)

    # The end of the kernel

    def _is_end_expected(self) -> bool:
        return self._is_ending or bool(getattr(self.parent, "shutting_down", False))

    async def _end_by(self, signum: int, wait_s: float) -> None:
        self._is_ending = True
        if self._is_silent and self._ends_for_good:
            return  # `cleanup` stops the kernel, and the service keeps that until the agent answers
        try:
            await asyncio.wait_for(self.send_signal(signum), _NO_ANSWER_S)
        except (RoostError, asyncio.TimeoutError) as problem:
            self._is_silent = True
            why = str(problem) or f"no answer for {_NO_ANSWER_S:g} s"
            self.log.warning("kernel=%s signal %d was not sent: %s", self._id, signum, why)
            return
        if self._exit is not None and wait_s:
            await self._exit.wait(wait_s)
