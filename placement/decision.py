"""What a policy answers: where the kernel goes, what else was possible, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .model import Request
from .refusals import BY_OPERATOR, SUMMARIES, Refusal, RefusalGroup, group_refusals

_AMOUNTS = frozenset({"gpu", "memory", "cpu", "resources"})
"""Filters by what nodes have; what others refuse for ever, a request can change that says something else."""

_OURS = frozenset({*(name for name, _ in SUMMARIES), "avoid"})
"""What refuses under any policy. A filter of another name is the policy's own."""

SHOWN_REFUSALS = 1_000
"""As many refusals are written out; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A node and the devices preferred on it. ``score`` is the sum of ``terms``, the scorers' weighted say.

    The devices are a wish: the lease has the last word where a manager chooses them itself.
    """

    node_id: str
    device_ids: tuple[str, ...] = ()
    score: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A policy's answer to one request on one snapshot, with its grounds.

    ``policy`` is the policy that was asked; ``fallback`` says why round robin ranked in its stead, if it did.
    ``runners_up`` are the next best nodes, best first. A node may be refused by several filters: ``refusals``
    holds one entry for each, ordered by node, and all of them even when there is a placement; ``refused`` counts
    the nodes by their main reason, most first. The three may be worked out only when they are read.
    ``metrics_age_s`` is the age of the chosen node's metrics (None: it has none, or there is no placement).

    >>> refusal = Refusal(node_id="a", filter="gpu", reason="needs 1 GPU, has none", when="never")
    >>> Decision(request=Request(gpus=1), policy="pack", refusals=(refusal,)).reason
    'no node could ever hold 1 GPU (a: needs 1 GPU, has none)'
    """

    request: Request
    policy: str
    placement: Placement | None = None
    runners_up: Sequence[Placement] = ()
    refusals: Sequence[Refusal] = ()
    refused: Sequence[RefusalGroup] = ()
    fallback: str | None = None
    metrics_age_s: float | None = None
    snapshot_version: int = 0

    @property
    def is_never(self) -> bool:
        """True when there are nodes and none of them could hold the request even if it were empty."""
        groups = () if self.placement is not None else self._groups()
        return bool(groups) and all(group.when == "never" for group in groups)

    @property
    def reason(self) -> str:
        """One sentence that says why it went where it did, or why it did not go anywhere."""
        if self.placement is not None:
            terms = ", ".join(f"{name} {value:.4g}" for name, value in self.placement.terms.items())
            rank = f"{self.placement.node_id} ranks first" + (f" ({terms})" if terms else "")
            return f"{rank}; {self.fallback}" if self.fallback else rank
        groups = self._groups()
        if not groups:
            return "there are no nodes"
        could = "could ever hold" if self.is_never else "has room now for"
        no_node = f"no node {could} {self.request.describe()}"
        if all(group.filter not in _OURS for group in groups):
            now = "" if self.is_never else " now"
            no_node = f"policy {self.policy} gives no node{now} for {self.request.describe()}"
        total = sum(group.count for group in groups)
        if total == 1:
            refusal = groups[0].examples[0]
            return f"{no_node} ({refusal.node_id}: {refusal.reason})"
        said = [f"{group.count} {self._said_of(group, group.count)}" for group in groups]
        said[0] = f"{groups[0].count} of {total} nodes {self._said_of(groups[0], groups[0].count)}"
        return f"{no_node}: {', '.join(said)}"

    @property
    def remedies(self) -> list[str]:
        """What would have to change for a placement, nearest first; empty where there is one."""
        if self.placement is not None:
            return []
        groups = self._groups()
        if not groups:
            return ["there are no nodes: add one"]
        found, advised = [], set()
        for group in sorted(groups, key=lambda group: group.when == "never"):
            can_change = group.when == "now" or group.filter not in _AMOUNTS
            if can_change and group.alone and group.examples:
                nearest = group.examples[0]
                would = f"{_nodes(group.alone)} would do but {self._said_of(group, group.alone)}"
                if group.filter != "avoid" and group.examples[0].reason != BY_OPERATOR:
                    would += f"; nearest {nearest.node_id}: {nearest.reason}"
                advice = self._advice(group)
                found.append(f"{would}: {advice}" if advice else would)
                advised.add(advice)
        if self.is_never:
            advices = dict.fromkeys(self._advice(group) for group in groups)
            left = [advice for advice in advices if advice not in advised]
            found.append(f"waiting does not help: {'; or '.join(left)}" if left else "waiting does not help")
        elif not found:
            found.append("more than one thing is short on every node that could hold it")
        return found

    def _said_of(self, group: RefusalGroup, count: int) -> str:
        """What is said of so many nodes of the group, with what only the decision knows: models, and its policy."""
        if group.filter not in _OURS:
            named = f" ({group.filter})" if group.filter else ""
            return f"{'is' if count == 1 else 'are'} refused by policy {self.policy}{named}"
        said = group.describe(count)
        return said if self.request.gpu_models else said.replace(" such GPUs", " GPUs")

    def _advice(self, group: RefusalGroup) -> str:
        """What to do about such a refusal; empty where it is to wait."""
        if group.filter == "draining":
            drained = (example.node_id for example in group.examples if example.reason == BY_OPERATOR)
            node_id = next(drained, "" if group.examples else "NODE")
            return f"`roost drain {node_id} --off` lets kernels on it again" if node_id else ""
        if group.filter == "labels":
            return "ask for another label, or for none, or add a node that has it"
        if group.filter == "taints":
            return "say what the kernel tolerates (`--tolerate NAME`, in a kernelspec `tolerates`)"
        if group.filter not in _OURS:
            return f"that is policy {self.policy}'s doing: another policy may take it"
        return "ask for less, or add a node that has it" if group.when == "never" else ""

    def lines(self) -> list[str]:
        """The whole decision for people, a line per placement and refusal."""
        lines = [self.reason]
        ranked = ([self.placement] if self.placement else []) + list(self.runners_up)
        for rank, placement in enumerate(ranked, start=1):
            devices = f" on {', '.join(placement.device_ids)}" if placement.device_ids else ""
            terms = ", ".join(f"{name} {value:.4g}" for name, value in placement.terms.items())
            lines.append(
                f"{rank}. {placement.node_id}{devices}: {placement.score:.4g}"
                + (f" ({terms})" if terms else "")
            )
        for refusal in self.refusals[:SHOWN_REFUSALS]:
            when = "not now" if refusal.when == "now" else "never"
            lines.append(f"{refusal.node_id}: {when}, {refusal.reason}")
        lines += self.remedies
        if self.placement is not None:
            age = "unknown" if self.metrics_age_s is None else f"{self.metrics_age_s:.1f} s old"
            lines.append(f"policy {self.policy}, metrics {age}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON types; ``from_dict`` is the inverse.

        ``reason``, ``is_never`` and ``remedies`` are added; of the refusals there are ``SHOWN_REFUSALS`` at most.
        """
        return {
            "request": self.request.to_dict(),
            "policy": self.policy,
            "placement": None if self.placement is None else _plain(self.placement),
            "runners_up": [_plain(placement) for placement in self.runners_up],
            "refusals": [_plain_refusal(refusal) for refusal in self.refusals[:SHOWN_REFUSALS]],
            "refused": [
                _plain_group(group, f"{_nodes(group.count)} {self._said_of(group, group.count)}")
                for group in self._groups()
            ],
            "remedies": self.remedies,
            "fallback": self.fallback,
            "metrics_age_s": self.metrics_age_s,
            "snapshot_version": self.snapshot_version,
            "reason": self.reason,
            "is_never": self.is_never,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """Reads ``to_dict``'s form, also after a way through JSON."""
        placement = data["placement"]
        return cls(
            request=Request.from_dict(data["request"]),
            policy=data["policy"],
            placement=None if placement is None else _placement(placement),
            runners_up=tuple(map(_placement, data["runners_up"])),
            refusals=tuple(Refusal(**refusal) for refusal in data["refusals"]),
            refused=tuple(map(_group, data["refused"])),
            fallback=data["fallback"],
            metrics_age_s=data["metrics_age_s"],
            snapshot_version=data["snapshot_version"],
        )

    def _groups(self) -> Sequence[RefusalGroup]:
        return self.refused or group_refusals(self.refusals)


def _nodes(count: int) -> str:
    return f"{count} {'node' if count == 1 else 'nodes'}"


def _plain(placement: Placement) -> dict[str, Any]:
    return {
        "node_id": placement.node_id,
        "device_ids": list(placement.device_ids),
        "score": placement.score,
        "terms": dict(placement.terms),
    }


def _placement(data: Mapping[str, Any]) -> Placement:
    return Placement(**{**data, "device_ids": tuple(data["device_ids"])})


def _plain_refusal(refusal: Refusal) -> dict[str, Any]:
    return {
        "node_id": refusal.node_id,
        "filter": refusal.filter,
        "reason": refusal.reason,
        "when": refusal.when,
    }


def _plain_group(group: RefusalGroup, text: str) -> dict[str, Any]:
    return {
        "filter": group.filter,
        "when": group.when,
        "count": group.count,
        "alone": group.alone,
        "examples": [_plain_refusal(refusal) for refusal in group.examples],
        "text": text,
    }


def _group(data: Mapping[str, Any]) -> RefusalGroup:
    examples = tuple(Refusal(**refusal) for refusal in data["examples"])
    return RefusalGroup(**{**{k: v for k, v in data.items() if k != "text"}, "examples": examples})
