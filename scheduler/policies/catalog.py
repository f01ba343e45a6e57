"""The placement policies of one scheduler: found by name, and kept, so that what they rated once stays rated.

Shipped ones run on the event loop and are made anew when the workload changes. All others are anybody's code: loaded
and asked in threads, and where one fails `balanced` ranks in its stead (`guard`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from roost.launchers.daemon.tasks import in_thread
from roost.placement import NOWHERE, Decision, Policy, Request, Snapshot, Workload
from roost.placement.shipped_policies import SHIPPED, list_installed
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import ConfigError, NotAllowed
from roost.scheduler.service.operations import AddPolicy

from .loader import find_policy, load_policy
from .pickling import PYTHON, unpack_policy
from .recent_requests import RecentRequests
from .sandbox import PolicyFailed, SandboxedPolicy

FALLBACK = "balanced"
_LOAD_S = 15.0
"""A policy that takes longer to be loaded cannot be used; less than a client waits."""
_REMEMBERED = 1_000


class PolicyCatalog:
    """What `request.policy` means. Belongs to an event loop."""

    def __init__(self, settings: Settings, recent: RecentRequests) -> None:
        self._settings = settings
        self._recent = recent
        self._workload = Workload()
        self._shipped: dict[str, Policy] = {}
        self._others: dict[str, SandboxedPolicy] = {}
        self._problems: dict[str, ConfigError] = {}
        self._given: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        """What was wrong with the latest decision, by the policy's name, said of it: `failed (ValueError: …)`."""
        self._loading: dict[
            str, asyncio.Task[ConfigError | None]
        ] = {}  # by token of a client's, else by name

    async def load(self, name: str) -> None:
        """Find the policy of that name, unless it is known; `check` tells what is wrong with it."""
        spec = self._spec(name)
        if spec not in SHIPPED and name not in self._others and self._may_ask(name):
            if len(self._problems) > _REMEMBERED:
                self._problems.clear()
            problem = await self._load(name, lambda: find_policy(name, self._settings.policies))
            if problem is not None:
                self._problems[name] = problem

    def check(self, name: str) -> None:
        """Raise `ConfigError` where there is no policy of that name, as far as `load` has found."""
        if not self._may_ask(name):
            raise ConfigError(
                f"policy {name!r:.80} is not the operator's: it can be used once c.RoostScheduler.policies "
                "gives it a name."
            )
        if self._spec(name) not in SHIPPED and name not in self._others:
            raise self._problems.get(name) or ConfigError(f"policy {name!r:.80} is not known yet; ask again.")

    async def problems(self, names: Iterable[str]) -> dict[str, str]:
        """Of these those that cannot be used, each with one sentence that says why."""
        wanted = sorted(set(names))
        await asyncio.gather(*map(self.load, wanted))
        wrong = {}
        for name in wanted:
            try:
                self.check(name)
            except ConfigError as problem:
                wrong[name] = problem.user_message
        return wrong

    async def wrong_in_configuration(self) -> dict[str, str]:
        """As `problems`, of what the configuration names, by what names it."""
        named = {f"c.RoostScheduler.policies[{name!r}]": name for name in self._settings.policies}
        named = {"c.RoostScheduler.default_policy": self._settings.default_policy, **named}
        wrong = await self.problems(named.values())
        return {setting: wrong[name] for setting, name in named.items() if name in wrong}

    async def add(self, given: AddPolicy) -> None:
        """Take a client's policy; raises `ConfigError` or `NotAllowed`. Given again by the same call: nothing."""
        if not self._settings.allow_client_policies:
            raise NotAllowed(
                "policies from programs are not allowed here (c.RoostScheduler.allow_client_policies): "
                "ask the operator to name it."
            )
        if given.python != PYTHON:
            raise ConfigError(
                f"the scheduler service runs Python {PYTHON}: a policy from Python {given.python} cannot be read there."
            )
        if self._given.get(given.name) == given.token:
            return
        if wrong := self._wrong_name(given.name):
            raise ConfigError(f"policy {given.name!r:.80} needs another name: {wrong}.")
        problem = await self._load(given.name, lambda: unpack_policy(given.pickled), given.token)
        if problem is not None:
            raise problem

    async def decide(
        self, name: str, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE
    ) -> Decision:
        """Where that policy places the request; raises `ConfigError` as `check` does."""
        self.check(name)
        workload = self._recent.workload(snapshot)
        if workload is not self._workload:
            self._workload = workload
            self._shipped.clear()
        spec = self._spec(name)
        if spec in SHIPPED:
            decision = self._made(spec).place(request, snapshot, avoid=avoid)
        else:
            try:
                decision = await self._others[name].place(request, snapshot, avoid, workload)
                self.failed.pop(name, None)
            except PolicyFailed as problem:
                self.failed[name] = str(problem)
                decision = self._made(FALLBACK).place(request, snapshot, avoid=avoid)
                grounds = f"ranked by {FALLBACK}, since policy {name} {problem}"
                also = f"; {decision.fallback}" if decision.fallback else ""
                decision = replace(decision, fallback=f"{grounds}{also}")
        return decision if decision.policy == name else replace(decision, policy=name)

    async def close(self) -> None:
        """Wait for no policy: its thread ends with the process."""
        tasks = [*self._loading.values(), *(other.call for other in self._others.values() if other.call)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _made(self, name: str) -> Policy:
        if name not in self._shipped:
            self._shipped[name] = SHIPPED[name](self._workload)
        return self._shipped[name]

    def _spec(self, name: str) -> str:
        return self._settings.policies.get(name, name)

    def _may_ask(self, name: str) -> bool:
        """Who asks may name what is shipped, installed or the operator's; only the operator names a module or file."""
        return ":" not in name or name in self._settings.policies or name == self._settings.default_policy

    def _wrong_name(self, name: str) -> str:
        """Why a client's policy cannot have that name, or an empty text."""
        if not name.strip():
            return "it has none"
        if ":" in name:
            return "nobody can ask for one with a colon, which names a module or a file"
        if name in SHIPPED:
            return "a shipped policy has it"
        if name in self._settings.policies:
            return "the operator's configuration has given it to another"
        return "a policy of an installed package has it" if name in list_installed() else ""

    async def _load(self, name: str, find_it: Callable[[], object], token: str = "") -> ConfigError | None:
        """Keep what is found under that name, or say why not. Whoever asks for the same meanwhile waits along."""
        key = token or name
        if key not in self._loading:
            self._loading[key] = asyncio.ensure_future(self._loaded(name, find_it, token))
            self._loading[key].add_done_callback(lambda _: self._loading.pop(key, None))
        task = self._loading[key]
        done, _ = await asyncio.wait([task], timeout=_LOAD_S)
        if not done:
            return ConfigError(
                f"the placement policy {name} is not loaded after {_LOAD_S:g} s; ask for another."
            )
        return task.result()

    async def _loaded(self, name: str, find_it: Callable[[], object], token: str) -> ConfigError | None:
        timeout_s, workload = self._settings.policy_timeout_s, self._workload

        def load() -> SandboxedPolicy | ConfigError:
            try:
                return load_policy(
                    name, lambda: SandboxedPolicy(name, find_it(), workload, timeout_s=timeout_s)
                )
            except ConfigError as problem:
                return problem

        outcome = await in_thread(load)
        if isinstance(outcome, ConfigError):
            return outcome
        self._others[name] = outcome
        self.failed.pop(name, None)
        if token:
            self._given[name] = token
        return None
