"""The placement policies of one scheduler, by name.

Policies are kept between requests, because they cache scores. Shipped policies are built again when the workload
changes. All other policies run in processes (`sandbox`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from roost.launchers.daemon.tasks import ask_all, cancel_all, join_shared, start_shared
from roost.placement import NOWHERE, Decision, Policy, Request, Snapshot, Workload
from roost.placement.new_nodes import NodeTypes
from roost.placement.shipped_policies import SHIPPED, list_installed
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import ConfigError, NotAllowed

from .pickling import PYTHON
from .policy_messages import PolicySource
from .recent_requests import RecentRequests
from .sandbox import PolicyFailed, SandboxedPolicy

FALLBACK = "balanced"
_LOADED_AT_ONCE = 4
"""At most so many policies are loaded at the same time for a check: each takes a process."""
_DEFAULT = "c.RoostScheduler.default_policy"
_POLICIES = "c.RoostScheduler.policies"
_MAX_PROBLEMS = 1_000
"""At most this many errors of unusable policies are kept, because clients can ask for any number of names."""


class PolicyCatalog:
    """All policies that a request can name. All methods are called on one event loop."""

    def __init__(self, settings: Settings, recent: RecentRequests) -> None:
        self._settings = settings
        self._recent = recent
        self._workload = Workload()
        self._shipped: dict[str, Policy] = {}
        self._for_types: dict[str, Policy] = {}
        """Shipped policies that are asked about node types only: a policy keeps the scores of one cluster."""
        self._others: dict[str, SandboxedPolicy] = {}
        self._problems: dict[str, str] = {}
        self._given: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        """Why the latest decision of a policy was unusable, by policy name: `failed (ValueError: …)`."""
        self._loading: dict[str, asyncio.Task[ConfigError | None]] = {}  # by a client's token, else by name

    async def load(self, name: str) -> None:
        """Load the policy of that name unless it is loaded already. If this fails, `check` raises the error."""
        if not self._is_known(name) and self._may_ask(name):
            if len(self._problems) > _MAX_PROBLEMS:
                self._problems.clear()
            problem = await self._load(PolicySource(name, dict(self._settings.policies)))
            if problem is not None:
                self._problems[name] = problem.user_message

    def check(self, name: str) -> None:
        """Raise `ConfigError` if `load` has found no usable policy of that name.

        `fields` of the error has the `policy`, and the `setting` that names it, empty if a request names it.
        """
        if not self._is_known(name):
            is_loading = f"policy {name!r:.80} is still loading; try again."
            raise self._refuse(name, self._problems.get(name, is_loading))

    async def find_problems(self, names: Iterable[str]) -> dict[str, ConfigError]:
        """Return the unusable policies among `names`, each with the error that a request for it gets.

        Each policy that is not loaded yet is loaded in a process of its own, which ends at once.
        """
        wanted = sorted({name for name in names if not self._is_known(name)})
        problems = await ask_all(self._try, wanted, most=_LOADED_AT_ONCE)
        return {name: problem for name, problem in zip(wanted, problems, strict=True) if problem is not None}

    async def check_configuration(self) -> dict[str, str]:
        """Return the problem of each unusable policy in the configuration, by the setting that names it."""
        named = {f"{_POLICIES}[{name!r}]": name for name in self._settings.policies}
        named = {_DEFAULT: self._settings.default_policy, **named}
        problems = await self.find_problems(named.values())
        return {setting: problems[name].user_message for setting, name in named.items() if name in problems}

    async def check_installed(self) -> dict[str, str]:
        """Return the problem of each unusable policy of an installed package, by its name."""
        wanted = list_installed().keys() - self._settings.policies.keys() - {self._settings.default_policy}
        problems = await self.find_problems(wanted)
        return {name: problem.user_message for name, problem in problems.items()}

    async def _try(self, name: str) -> ConfigError | None:
        """Return the error of a policy that is not loaded yet; None if a request could use it."""
        if not self._may_ask(name):
            return self._refuse(name)
        tried = self._make_process(PolicySource(name, dict(self._settings.policies)))
        try:
            await tried.load()
        except ConfigError as problem:
            return self._refuse(name, problem.user_message)
        finally:
            await tried.close()
        return None

    async def add(self, name: str, pickled: str, python: str, token: str) -> None:
        """Add a client's policy, which `pickling` has packed with the version `python` of Python.

        Raises `ConfigError` or `NotAllowed`. A repeated call with the same `token` does not load the policy again.
        """
        if not self._settings.allow_client_policies:
            raise NotAllowed(
                "policies from programs are not allowed here (c.RoostScheduler.allow_client_policies): "
                "ask the operator to add it."
            )
        if python != PYTHON:
            raise ConfigError(
                f"the scheduler service runs Python {PYTHON}: it cannot load a policy from Python {python}."
            )
        if self._given.get(name) == token:
            return
        if wrong := self._wrong_name(name):
            raise ConfigError(f"policy {name!r:.80} needs another name: {wrong}.")
        problem = await self._load(PolicySource(name, pickled=pickled), token)
        if problem is not None:
            raise problem

    async def decide(
        self, name: str, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE
    ) -> Decision:
        """Return the policy's decision, or `balanced`'s if it fails. Raises `ConfigError` as `check` does.

        Without a placement, the policy is asked again about the nodes that the cluster could start.
        """
        self.check(name)
        workload = self._recent.workload(snapshot)
        if workload is not self._workload:
            self._workload = workload
            self._shipped.clear()
            self._for_types.clear()
        decision = await self._place(name, request, snapshot, avoid, self._shipped)
        if decision.placement is not None:
            return decision
        if not snapshot.node_types:
            return decision.changed_to(may_grow=True) if snapshot.may_grow else decision
        types = NodeTypes.of(snapshot)
        on_types = await self._place(name, request, types.nodes, types.avoid, self._for_types)
        return types.add_to(decision, on_types)

    async def _place(
        self,
        name: str,
        request: Request,
        snapshot: Snapshot,
        avoid: Mapping[str, str],
        shipped: dict[str, Policy],
    ) -> Decision:
        """Return the decision of one policy, or of `balanced` if it fails. `shipped` has roost's own policies."""
        policy = self.get(name, shipped)
        if isinstance(policy, SandboxedPolicy):
            try:
                decision = await policy.place(request, snapshot, avoid, self._workload)
                self.failed.pop(name, None)
            except PolicyFailed as problem:
                self.failed[name] = str(problem)
                decision = self._get_shipped(FALLBACK, shipped).place(request, snapshot, avoid=avoid)
                fallback = f"ranked by {FALLBACK}, since policy {name} {problem}"
                own = f"; {decision.fallback}" if decision.fallback else ""
                decision = decision.changed_to(fallback=f"{fallback}{own}")
        else:
            decision = policy.place(request, snapshot, avoid=avoid)
        return decision if decision.policy == name else decision.changed_to(policy=name)

    def _is_known(self, name: str) -> bool:
        """True if a request can use the policy of that name now."""
        return self._spec(name) in SHIPPED or name in self._others

    def _refuse(self, name: str, problem: str = "") -> ConfigError:
        """Return the error of a request for an unusable policy."""
        if self._may_ask(name):
            return ConfigError(problem, policy=name, setting=self._find_setting(name))
        problem = (
            f"policy {name!r:.80} names a file or module: only the operator can do that, in {_POLICIES}."
        )
        return ConfigError(problem, policy=name, setting="")

    def _find_setting(self, name: str) -> str:
        """Return the setting that holds the policy's file, module or name; empty without one."""
        if name in self._settings.policies:
            return f"{_POLICIES}[{name!r}]"
        return _DEFAULT if name == self._settings.default_policy else ""

    def get(self, name: str, shipped: dict[str, Policy] | None = None) -> Policy | SandboxedPolicy:
        """Return the policy that decides for this name; `check` must have passed."""
        spec = self._spec(name)
        if spec in SHIPPED:
            return self._get_shipped(spec, self._shipped if shipped is None else shipped)
        return self._others[name]

    async def close(self) -> None:
        """End the processes of all policies."""
        await cancel_all(set(self._loading.values()))
        await asyncio.gather(*(other.close() for other in self._others.values()))

    def _get_shipped(self, name: str, among: dict[str, Policy]) -> Policy:
        if name not in among:
            among[name] = SHIPPED[name](self._workload)
        return among[name]

    def _spec(self, name: str) -> str:
        return self._settings.policies.get(name, name)

    def _may_ask(self, name: str) -> bool:
        """True if a request may use this name. Only the operator may name a module or a file."""
        return ":" not in name or name in self._settings.policies or name == self._settings.default_policy

    def _wrong_name(self, name: str) -> str:
        """Return why a client's policy cannot have that name; empty if it can."""
        if not name.strip():
            return "a name is needed"
        if not name.isprintable():
            return "it has a character that cannot be printed"
        if ":" in name:
            return "a colon is only for a module or a file"
        if name in SHIPPED:
            return "a shipped policy has this name"
        if name in self._settings.policies:
            return "the operator's configuration uses this name"
        return "a policy of an installed package has this name" if name in list_installed() else ""

    async def _load(self, source: PolicySource, token: str = "") -> ConfigError | None:
        """Load a policy and keep it, or return the error. Calls with the same token (or name) share one load."""
        key = token or source.name
        if key not in self._loading:
            self._loading[key] = start_shared(self._load_alone(source, token))
            self._loading[key].add_done_callback(lambda _: self._loading.pop(key, None))
        return await join_shared(self._loading[key])

    async def _load_alone(self, source: PolicySource, token: str) -> ConfigError | None:
        name = source.name
        loaded = self._make_process(source)
        try:
            await loaded.load()
        except ConfigError as problem:
            return problem
        before, self._others[name] = self._others.get(name), loaded
        self.failed.pop(name, None)
        if token:
            self._given[name] = token
        if before is not None:
            await before.close()
        return None

    def _make_process(self, source: PolicySource) -> SandboxedPolicy:
        return SandboxedPolicy(
            source,
            timeout_s=self._settings.policy_timeout_s,
            memory_bytes=self._settings.policy_memory,
        )
