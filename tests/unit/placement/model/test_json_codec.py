"""Messages become JSON and back. Malformed messages are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from roost.placement.model.json_codec import WireError, decode, encode, encode_message, share_equal


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: str
    share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    kind: Literal["a", "b"]
    count: int
    inner: Inner | None = None
    items: tuple[Inner, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    flag: bool = False


def test_round_trip_through_json() -> None:
    value = Outer(
        kind="a", count=2, inner=Inner(name="x", share=0.5), items=(Inner(name="y"),), labels={"k": "v"}
    )
    assert decode(Outer, json.loads(json.dumps(encode(value)))) == value
    assert decode(Outer, json.loads(json.dumps(encode_message(value)))) == value


def test_messages_leave_out_defaults_at_any_depth() -> None:
    usual = Outer(kind="a", count=0, inner=Inner(name=""), items=(Inner(name="y", share=0.0),), labels={})
    assert encode_message({"flag": False, "value": [usual]}) == {
        "flag": False,
        "value": [{"kind": "a", "count": 0, "inner": {"name": ""}, "items": [{"name": "y"}]}],
    }
    assert encode(usual)["items"] == [{"name": "y", "share": 0.0}]


@share_equal
@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    name: str
    count: float = 0.0

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name must not be empty.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    shared: Shared


def test_equal_values_of_a_shared_type_are_one_object() -> None:
    ada, again, other = (
        decode(Holder, {"shared": {"name": name, "count": 1}}).shared for name in ("ada", "ada", "bob")
    )
    assert ada is again
    assert (ada, other) == (Shared(name="ada", count=1.0), Shared(name="bob", count=1.0))
    for name in ("", 3, ""):
        with pytest.raises(WireError, match="name must"):
            decode(Holder, {"shared": {"name": name}})
    assert (
        decode(Holder, {"shared": {"name": "ada", "count": 1, "more": 1}}, ignore_unknown=True).shared == ada
    )
    with pytest.raises(WireError, match="has no field 'more'"):
        decode(Holder, {"shared": {"name": "ada", "count": 1, "more": 1}})
    large = {"shared": {"name": "x" * 100_000}}
    assert decode(Holder, large).shared is not decode(Holder, large).shared


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"kind": "a"}, "lacks the field 'count'"),
        ({"kind": "a", "count": 1, "more": 1}, "has no field 'more'"),
        ({"kind": "c", "count": 1}, "kind must be one of"),
        ({"kind": "a", "count": "1"}, "count must be a whole number, not str"),
        ({"kind": "a", "count": 1.5}, "count must be a whole number, not float"),
        ({"kind": "a", "count": True}, "count must be a whole number, not bool"),
        ({"kind": "a", "count": 10**400}, "count must be a number below 2..63"),
        ({"kind": "a", "count": -(2**63) - 1}, "count must be a number below 2..63"),
        ({"kind": "a", "count": 1, "inner": {"name": "x", "share": 10**400}}, "share must be a number below"),
        ({"kind": "a", "count": 1, "flag": 1}, "flag must be true or false"),
        ({"kind": "a", "count": 1, "inner": {"name": "x", "share": float("nan")}}, "finite number"),
        ({"kind": "a", "count": 1, "inner": {"name": 3}}, "Outer.inner.name must be text"),
        ({"kind": "a", "count": 1, "items": {"name": "x"}}, "items must be a list"),
        ({"kind": "a", "count": 1, "labels": {"k": 1}}, "labels.k must be text"),
        ([], "must be an object"),
        (None, "must be an object"),
    ],
)
def test_malformed_messages_are_refused_with_the_field(message: object, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        decode(Outer, message)


def test_unknown_fields_can_be_ignored_at_any_depth() -> None:
    message = {
        "kind": "a",
        "count": 1,
        "new": [1],
        "inner": {"name": "x", "new": 1},
        "items": [{"name": "y", "new": 1}],
    }
    read = decode(Outer, message, ignore_unknown=True)
    assert read == Outer(kind="a", count=1, inner=Inner(name="x"), items=(Inner(name="y"),))
    with pytest.raises(WireError, match="lacks the field 'count'"):
        decode(Outer, {"kind": "a"}, ignore_unknown=True)
