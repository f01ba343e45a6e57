"""The answer of a policy: the chosen node, the next best nodes, and the reasons against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from .model import NodeType, Request
from .model.format import format_count
from .model.json_codec import decode, encode
from .rules.refusals import AMOUNTS, BY_OPERATOR, SUMMARIES, Refusal, RefusalGroup, group_refusals

if TYPE_CHECKING:
    from .explanation import Explanation

Value = TypeVar("Value", bound="_Explained")

_COMMON = frozenset({*(name for name, _ in SUMMARIES), "avoid"})
"""The names of roost's own filters. A filter of another name belongs to the policy."""

_SHOWN_TYPES = 3
"""A sentence names at most this many reasons against types of nodes."""

SHOWN_REFUSALS = 1_000
"""At most this many refusals are written out. All are counted."""


class _Explained:
    """A frozen value with late fields, ``_LATE``. An explanation computes a late field when it is first read.

    Most late fields are never read.
    """

    __slots__ = ("_explanation",)
    _LATE: ClassVar[frozenset[str]]

    @classmethod
    def explained_by(cls: type[Value], explanation: Explanation, **known: Any) -> Value:
        """Return a value with the fields ``known``. The late fields come from the attributes of ``explanation``."""
        value = cls.__new__(cls)  # without __init__: the first read of an unset field calls __getattr__
        for name, content in known.items():
            object.__setattr__(value, name, content)
        object.__setattr__(value, "_explanation", explanation)
        return value

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in self._LATE:
                raise AttributeError(name)
            value = getattr(self._explanation, name)
            object.__setattr__(self, name, value)
            return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement(_Explained):
    """A node and the devices preferred on it.

    ``score`` is the sum of ``terms``, the weighted scores. The devices are a preference: some cluster managers
    choose the devices themselves.

    >>> Placement(node_id="a", device_ids=("0",), score=1.5, terms={"gpu": 1.0, "near": 0.5}).terms["near"]
    0.5
    """

    _LATE = frozenset({"terms"})

    node_id: str
    device_ids: tuple[str, ...] = ()
    score: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(_Explained):
    """The answer of a policy to one request on one snapshot, with its reasons.

    A pipeline computes ``runners_up``, ``refusals`` and ``refused`` when they are first read.

    >>> refusal = Refusal(node_id="a", filter="gpu", reason="needs 1 GPU, has none", when="never")
    >>> Decision(request=Request(gpus=1), policy="pack", refusals=(refusal,)).reason
    'no node could ever hold 1 GPU (a: needs 1 GPU, has none)'
    """

    _LATE = frozenset({"runners_up", "refusals", "refused"})

    request: Request
    policy: str
    """The name of the policy that was asked."""
    placement: Placement | None = None
    """The chosen node; None if no node can take the request now."""
    runners_up: Sequence[Placement] = ()
    """The next best nodes, best first."""
    refusals: Sequence[Refusal] = ()
    """One entry for each filter that refuses a node, ordered by node.

    There may be refusals even when there is a placement.
    """
    refused: Sequence[RefusalGroup] = ()
    """The numbers of refused nodes by their main reason, the largest group first."""
    fallback: str | None = None
    """Why another policy ranked the nodes instead; None if the policy that was asked did."""
    metrics_age_s: float | None = None
    """The age of the chosen node's metrics, or None without metrics."""
    snapshot_version: int = 0
    """The version of the snapshot on which the decision was made."""
    new_node: NodeType | None = None
    """The type of a node that the cluster could start for the request, for want of a placement. None: there is none.

    It is at its limit (not ``has_room``) only if all types that would fit are.
    """
    type_refusals: tuple[Refusal, ...] = ()
    """The reasons against each type of nodes that the cluster could start, if none fits. ``node_id`` is its name."""
    may_grow: bool = False
    """True if the cluster may get nodes of other types."""

    @property
    def is_explained(self) -> bool:
        """True if the decision gives refusals, or can compute them."""
        return hasattr(self, "_explanation") or bool(self.refusals or self.refused)

    def first_refusals(self, count: int | None) -> tuple[Refusal, ...]:
        """Return the first `count` refusals, or all if `count` is None. No other refusals are computed."""
        if count is None or not hasattr(self, "_explanation"):
            return tuple(self.refusals[:count])
        return tuple(islice(self._explanation.iterate_refusals(), count))

    def changed_to(self, **changes: Any) -> Decision:
        """Return a copy with these fields changed. Its late fields are still computed only when they are read."""
        if not hasattr(self, "_explanation") or changes.keys() & self._LATE:
            return replace(self, **changes)
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self._LATE}
        return self.explained_by(self._explanation, **{**known, **changes})

    @property
    def is_never(self) -> bool:
        """True if no node could hold the request even when empty, and the cluster can start none that could.

        Without any node, or type of nodes, nothing is known.
        """
        if self.placement is not None or self.new_node is not None or self.may_grow:
            return False
        return self.fits_no_node and bool(self._groups() or self.type_refusals)

    @property
    def fits_no_node(self) -> bool:
        """True if none of the nodes that are there could hold the request even when empty."""
        return self.placement is None and all(group.when == "never" for group in self._groups())

    @property
    def is_policys_refusal(self) -> bool:
        """True if the policy's own filters refuse all nodes: another policy may give one."""
        groups = self._groups() if self.placement is None else ()
        return bool(groups) and all(group.filter not in _COMMON for group in groups)

    @property
    def reason(self) -> str:
        """One sentence that gives the reason for the placement, or the reason why there is none."""
        if self.placement is not None:
            rank = f"{self.placement.node_id} ranks first{_format_terms(self.placement)}"
            return f"{rank}; {self.fallback}" if self.fallback else rank
        groups = self._groups()
        on_nodes = self._describe_refusals(groups) if groups else "there are no nodes"
        return f"{on_nodes}; {on_types}" if (on_types := self._describe_types()) else on_nodes

    def _describe_types(self) -> str:
        """Return whether the cluster could start a node for the request, as a clause; empty if that is not known."""
        if self.new_node is not None:
            return self.new_node.describe_room()
        if not self.type_refusals:
            return ""
        reasons = "; ".join(f"{each.node_id}: {each.reason}" for each in self.type_refusals[:_SHOWN_TYPES])
        return f"no type of node that the cluster can start could hold it ({reasons})"

    def _describe_refusals(self, groups: Sequence[RefusalGroup]) -> str:
        """Return why the nodes that are there are refused, as a clause."""
        could = "could ever hold" if self.is_never else "has room now for"
        if self.fits_no_node and not self.is_never:
            could = "that is there could hold"
        no_node = f"no node {could} {self.request.describe()}"
        if self.is_policys_refusal:
            now = "" if self.is_never else " now"
            no_node = f"policy {self.policy} gives no node{now} for {self.request.describe()}"
        total = sum(group.count for group in groups)
        if total == 1:
            refusal = groups[0].examples[0]
            return f"{no_node} ({refusal.node_id}: {refusal.reason})"
        counts = [f"{group.count} {self._describe(group, group.count)}" for group in groups]
        counts[0] = f"{groups[0].count} of {total} nodes {self._describe(groups[0], groups[0].count)}"
        first = groups[0].examples[0] if groups[0].filter not in _COMMON and groups[0].examples else None
        nearest = f"; nearest {first.node_id}: {first.reason}" if first is not None else ""
        return f"{no_node}: {', '.join(counts)}{nearest}"

    @property
    def advised_reason(self) -> str:
        """The ``reason``. If no node could ever hold the request, the last of the ``remedies`` follows."""
        return f"{self.reason}; {self.remedies[-1]}" if self.is_never else self.reason

    @property
    def remedies(self) -> list[str]:
        """The changes that would lead to a placement, nearest first. Empty if there is a placement."""
        if self.placement is not None:
            return []
        groups = self._groups()
        if not groups and not self._describe_types():
            return ["there are no nodes: add one"]
        remedies, advised = [], set()
        for group in sorted(groups, key=lambda group: group.when == "never"):
            can_change = group.when == "now" or group.filter not in AMOUNTS
            if can_change and group.alone and group.examples:
                nearest = group.examples[0]
                count = format_count(group.alone, "node")
                would = f"{count} would do but {self._describe(group, group.alone)}"
                if group.filter != "avoid" and group.examples[0].reason != BY_OPERATOR:
                    would += f"; nearest {nearest.node_id}: {nearest.reason}"
                advice = self._advise(group)
                remedies.append(f"{would}: {advice}" if advice else would)
                advised.add(advice)
        if self.is_never:
            advices = dict.fromkeys(self._advise(group) for group in groups)
            left = [advice for advice in advices if advice not in advised]
            instead = f": {'; or '.join(left)}" if left else ""
            remedies.append(f"waiting does not help{instead}")
        elif self.new_node is not None:
            remedies.append(self.new_node.describe_room())
        elif not remedies:
            remedies.append("more than one thing is short on every node that could hold it")
        return remedies

    def _describe(self, group: RefusalGroup, count: int) -> str:
        """Return why ``count`` nodes of the group are refused, as a predicate: ``have too few CPUs free now``."""
        if group.filter not in _COMMON:
            named = f" ({group.filter})" if group.filter else ""
            return f"{'is' if count == 1 else 'are'} refused by policy {self.policy}{named}"
        predicate = group.describe(count)
        request = self.request
        is_any_gpu = not (request.gpu_models or request.gpu_memory_bytes or request.visible_gpus is not None)
        return predicate.replace(" such GPUs", " GPUs") if is_any_gpu else predicate

    def _advise(self, group: RefusalGroup) -> str:
        """Return what the user can do about the group's refusals; empty if nothing but waiting helps."""
        if group.filter == "draining":
            drained = (example.node_id for example in group.examples if example.reason == BY_OPERATOR)
            node_id = next(drained, "" if group.examples else "NODE")
            return f"`roost drain {quote(node_id)} --off` lets kernels on it again" if node_id else ""
        if group.filter == "labels":
            return "ask for another label, or for none, or add a node that has it"
        if group.filter == "taints":
            return "say what the kernel tolerates (`--tolerate NAME`, in a kernelspec `tolerates`)"
        if group.filter not in _COMMON:
            return f"that is policy {self.policy}'s doing: another policy may take it"
        if group.filter == "gpu" and group.when == "never" and self.request.visible_gpus is not None:
            return "ask for less, or start the application with another CUDA_VISIBLE_DEVICES"
        return "ask for less, or add a node that has it" if group.when == "never" else ""

    def lines(self) -> list[str]:
        """Return the whole decision as text, with a line for each placement and refusal."""
        lines = [self.reason]
        ranked = ([self.placement] if self.placement else []) + list(self.runners_up)
        for rank, placement in enumerate(ranked, start=1):
            devices = f" on {', '.join(placement.device_ids)}" if placement.device_ids else ""
            score = f"{placement.score:.4g}{_format_terms(placement)}"
            lines.append(f"{rank}. {placement.node_id}{devices}: {score}")
        for refusal in self.first_refusals(SHOWN_REFUSALS):
            when = "not now" if refusal.when == "now" else "never"
            lines.append(f"{refusal.node_id}: {when}, {refusal.reason}")
        lines += self.remedies
        if self.placement is not None:
            age = "unknown" if self.metrics_age_s is None else f"{self.metrics_age_s:.1f} s old"
            lines.append(f"policy {self.policy}, metrics {age}")
        return lines

    def to_dict(self, *, refusals: int = SHOWN_REFUSALS) -> dict[str, Any]:
        """Return the decision as JSON types, with its ``reason``, ``is_never``, ``remedies`` and first refusals."""
        return {
            "request": self.request.to_dict(),
            "policy": self.policy,
            "placement": encode(self.placement),
            "runners_up": encode(self.runners_up),
            "refusals": encode(self.first_refusals(refusals)),
            "refused": [
                {
                    **encode(group),
                    "text": f"{format_count(group.count, 'node')} {self._describe(group, group.count)}",
                }
                for group in self._groups()
            ],
            "remedies": self.remedies,
            "fallback": self.fallback,
            "metrics_age_s": self.metrics_age_s,
            "snapshot_version": self.snapshot_version,
            "new_node": encode(self.new_node),
            "type_refusals": encode(self.type_refusals),
            "may_grow": self.may_grow,
            "reason": self.reason,
            "is_never": self.is_never,
            "is_policys_refusal": self.is_policys_refusal,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """Return the decision that ``to_dict`` wrote, also after a round trip through JSON."""
        return decode(cls, data, ignore_unknown=True)

    def _groups(self) -> Sequence[RefusalGroup]:
        return self.refused or group_refusals(self.refusals)


def _format_terms(placement: Placement) -> str:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in placement.terms.items())
    return f" ({terms})" if terms else ""
