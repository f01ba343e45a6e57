"""Runs a foreign policy, which roost does not ship, in a thread, and checks its decisions, so that none over-commits.

Each decision has a deadline. The thread also computes the decision's explanation. None of the policy's code runs on the
event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from roost.launchers.daemon.tasks import in_thread
from roost.placement import Decision, Policy, Refusal, Request, Snapshot, Workload
from roost.placement.decision import SHOWN_REFUSALS
from roost.placement.pipeline import DEFAULT_FILTERS
from roost.placement.shipped_policies import build_policy

from .loader import format_error

log = logging.getLogger(__name__)


class PolicyFailed(Exception):
    """The policy made no usable decision. The text completes "policy NAME …", as in `did not answer within 1 s`."""


class SandboxedPolicy:
    """A policy that roost does not ship. It runs in a thread, and is not asked again while its last `call` runs."""

    def __init__(self, name: str, found: object, workload: Workload, *, timeout_s: float) -> None:
        self.name = name
        self._found = found
        self._timeout_s = timeout_s
        self._workload = workload
        self._policy: Policy = build_policy(found, name, workload)
        self._learns = not isinstance(found, (type, Policy))
        self._turn = asyncio.Lock()
        self.call: asyncio.Task[Decision | str] | None = None
        self._asked_at = 0.0
        self._last_error = ""

    async def place(
        self, request: Request, snapshot: Snapshot, avoid: Mapping[str, str], workload: Workload
    ) -> Decision:
        """Return the policy's checked decision; raises `PolicyFailed`."""
        async with self._turn:
            if not await self._has_answered():  # a cancelled caller may have left its call behind
                waited_s = time.monotonic() - self._asked_at
                raise PolicyFailed(f"has not answered for {waited_s:.0f} s and is not asked until it does")
            self._asked_at = time.monotonic()
            answering = in_thread(lambda: self._ask(request, snapshot, avoid, workload))
            self.call = asyncio.ensure_future(answering)
            if not await self._has_answered():
                log.error("policy=%s did not answer within %g s", self.name, self._timeout_s)
                raise PolicyFailed(f"did not answer within {self._timeout_s:g} s")
            answer = self.call.result()
        if isinstance(answer, str):
            raise PolicyFailed(f"failed ({answer})")
        return answer

    async def _has_answered(self) -> bool:
        if self.call is None:
            return True
        remaining_s = self._asked_at + self._timeout_s - time.monotonic()
        done, _ = await asyncio.wait([self.call], timeout=max(0.0, remaining_s))
        return bool(done)

    def _ask(
        self, request: Request, snapshot: Snapshot, avoid: Mapping[str, str], workload: Workload
    ) -> Decision | str:
        """Return a checked decision, or the description of the policy's error. Runs in the thread."""
        try:
            if self._learns and workload is not self._workload:
                self._policy, self._workload = build_policy(self._found, self.name, workload), workload
            decision = self._policy.place(request, snapshot, avoid=avoid)
            return check_decision(decision, request, snapshot, avoid)
        except BaseException as problem:  # foreign code may even raise SystemExit
            text = format_error(problem)
            if text != self._last_error:  # the policy's author needs the traceback, once
                log.exception("policy=%s failed", self.name)
            else:
                log.error("policy=%s failed again: %s", self.name, text)
            self._last_error = text
            return text


def check_decision(answer: Any, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> Decision:
    """Return a copy of the answer without objects of the policy. Raise an error if the decision is not possible."""
    answer = check_placement(answer, request, snapshot, avoid)
    shown = None if answer.placement is None else SHOWN_REFUSALS  # a queued start reads all of them
    refusals: tuple[Any, ...] = answer.first_refusals(shown)
    for refusal in refusals:
        if not isinstance(refusal, Refusal) or refusal.node_id not in snapshot:
            raise ValueError(f"it refuses {refusal!s:.80}, which is not a node")
    if answer.placement is None and len(snapshot) and not refusals and not answer.refused:
        raise ValueError("it gave neither a node nor a refusal")
    plain = json.dumps(answer.changed_to(request=request).to_dict(), allow_nan=False, default=float)
    return replace(
        Decision.from_dict(json.loads(plain)),
        request=request,
        refusals=refusals,
        snapshot_version=snapshot.version,
    )


def check_placement(answer: Any, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> Decision:
    """Return the answer as a decision; raise if the chosen node and devices cannot hold the request."""
    if not isinstance(answer, Decision):
        raise TypeError(f"place gave {type(answer).__name__}, not a Decision")
    placement = answer.placement
    if placement is None:
        return answer
    node_id, ids = placement.node_id, placement.device_ids
    if node_id not in snapshot:
        raise ValueError(f"it chose {node_id!r:.80}, but there is no such node")
    if node_id in avoid:
        raise ValueError(f"it chose {node_id}, which {avoid[node_id]}")
    row = snapshot.row(node_id)
    node, part = snapshot.at(row), snapshot.part(np.array([row]))
    for rule in DEFAULT_FILTERS:
        passes = rule.passes(request, part)
        if passes is not None and not passes[0]:
            raise ValueError(f"it chose {node_id}, which {rule.reason(request, node)}")
    free = {device.id for device in node.fitting_devices(request)} if request.gpus else set()
    for device_id in ids:
        if device_id not in free:
            raise ValueError(f"it chose device {device_id!r:.80} of {node_id}, which is missing or not free")
    if len(set(ids)) != len(ids) or len(ids) not in (0, request.gpu_count):
        raise ValueError(f"it chose {len(ids)} devices ({', '.join(ids):.80}) for {request.describe()}")
    if not all(math.isfinite(number) for number in (placement.score, *placement.terms.values())):
        raise ValueError(f"its score for {node_id} is not a finite number")
    return answer
