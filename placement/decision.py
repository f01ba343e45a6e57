"""What a policy answers: where the kernel goes, what else was possible, and why not elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .values import Request

When = Literal["now", "never"]

_SUMMARIES: dict[tuple[str, str], tuple[str, str]] = {  # (filter, when) → said of one node, of several
    ("gpu", "now"): ("has too few GPUs free now", "have too few GPUs free now"),
    ("gpu", "never"): ("has too few such GPUs at all", "have too few such GPUs at all"),
    ("memory", "now"): ("has too little memory free now", "have too little memory free now"),
    ("memory", "never"): ("has too little memory at all", "have too little memory at all"),
    ("cpu", "now"): ("has too few CPUs free now", "have too few CPUs free now"),
    ("cpu", "never"): ("has too few CPUs at all", "have too few CPUs at all"),
    ("labels", "never"): ("lacks a label asked for", "lack a label asked for"),
    ("draining", "now"): ("is draining", "are draining"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why one filter refuses one node. ``now``: the empty node would hold it; ``never``: not even that.

    ``reason`` is a sentence's fragment with figures, said of the node: ``needs 1 GPU, 0.25 free``.
    """

    node_id: str
    filter: str
    reason: str
    when: When


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
    holds one entry for each, ordered by node, and all of them even when there is a placement.
    ``metrics_age_s`` is the age of the chosen node's metrics (None: it has none, or there is no placement).

    >>> refusal = Refusal(node_id="a", filter="gpu", reason="needs 1 GPU, has none", when="never")
    >>> Decision(request=Request(gpus=1), policy="pack", refusals=(refusal,)).reason
    'no node could ever hold 1 GPU (a: needs 1 GPU, has none)'
    """

    request: Request
    policy: str
    placement: Placement | None = None
    runners_up: tuple[Placement, ...] = ()
    refusals: Sequence[Refusal] = ()
    fallback: str | None = None
    metrics_age_s: float | None = None
    snapshot_version: int = 0

    @property
    def is_never(self) -> bool:
        """True when there are nodes and none of them could hold the request even if it were empty."""
        main = self._main_refusals()
        return self.placement is None and bool(main) and all(refusal.when == "never" for refusal in main)

    @property
    def reason(self) -> str:
        """One sentence that says why it went where it did, or why it did not go anywhere."""
        if self.placement is not None:
            terms = ", ".join(f"{name} {value:.4g}" for name, value in self.placement.terms.items())
            rank = f"{self.placement.node_id} ranks first" + (f" ({terms})" if terms else "")
            return f"{rank}; {self.fallback}" if self.fallback else rank
        main = self._main_refusals()
        if not main:
            return "there are no nodes"
        could = "could ever hold" if self.is_never else "has room now for"
        no_node = f"no node {could} {self.request.describe()}"
        if len(main) == 1:
            return f"{no_node} ({main[0].node_id}: {main[0].reason})"
        groups = Counter(_summary(refusal) for refusal in main).most_common()
        said: list[str] = []
        for (one, many), count in groups:
            of = "" if said else f" of {len(main)} nodes"
            said.append(f"{count}{of} {one if count == 1 else many}")
        return f"{no_node}: {', '.join(said)}"

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
        for refusal in self.refusals:
            when = "not now" if refusal.when == "now" else "never"
            lines.append(f"{refusal.node_id}: {when}, {refusal.reason}")
        if self.placement is not None:
            age = "unknown" if self.metrics_age_s is None else f"{self.metrics_age_s:.1f} s old"
            lines.append(f"policy {self.policy}, metrics {age}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON types, ``reason`` and ``is_never`` added; ``from_dict`` is the inverse."""
        return {
            "request": self.request.to_dict(),
            "policy": self.policy,
            "placement": None if self.placement is None else _plain(self.placement),
            "runners_up": [_plain(placement) for placement in self.runners_up],
            "refusals": [
                {"node_id": r.node_id, "filter": r.filter, "reason": r.reason, "when": r.when}
                for r in self.refusals
            ],
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
            fallback=data["fallback"],
            metrics_age_s=data["metrics_age_s"],
            snapshot_version=data["snapshot_version"],
        )

    def _main_refusals(self) -> list[Refusal]:
        """One per refused node: its first *never*, else its first *now*."""
        main: dict[str, Refusal] = {}
        for refusal in self.refusals:
            known = main.get(refusal.node_id)
            if known is None or (known.when, refusal.when) == ("now", "never"):
                main[refusal.node_id] = refusal
        return list(main.values())


def _plain(placement: Placement) -> dict[str, Any]:
    return {
        "node_id": placement.node_id,
        "device_ids": list(placement.device_ids),
        "score": placement.score,
        "terms": dict(placement.terms),
    }


def _placement(data: Mapping[str, Any]) -> Placement:
    return Placement(**{**data, "device_ids": tuple(data["device_ids"])})


def _summary(refusal: Refusal) -> tuple[str, str]:
    """Said of one node, of several. Nodes to avoid come with their reason."""
    name = refusal.filter
    if name == "avoid":
        return refusal.reason, refusal.reason
    return _SUMMARIES.get((name, refusal.when), (f"is refused by {name}", f"are refused by {name}"))
