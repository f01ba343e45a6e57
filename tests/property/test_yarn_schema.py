"""roost's messages have the same names, numbers, types and bytes as protobuf's, built from Hadoop's descriptors."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.clusters.hadoop_nodes import jars, why_not
from kit.machine.cases import find_wrong
from roost.scheduler.backends.yarn.master import schema, wire

pytestmark = pytest.mark.skipif(
    not jars().exists(), reason=why_not() or "Hadoop's jars are missing: `make build-yarn`"
)

MESSAGES = [
    kind for _, kind in inspect.getmembers(schema, inspect.isclass) if kind.__module__ == schema.__name__
]
OTHER_NAMES = {
    schema.CredentialsMessage: "CredentialsProto",
    schema.Grant: "ContainerProto",
    schema.SaslAuth: "RpcSaslProto.SaslAuth",
}
_INT32 = ("type_int32", "type_uint32", "type_sint32", "type_enum")


@functools.cache
def load() -> dict[str, Any]:
    from kit.clusters.hadoop_nodes.descriptors import load_messages

    return dict(load_messages())


def oracle(kind: type) -> Any:
    """Return protobuf's class, built from Hadoop's descriptors, for a message class of roost."""
    suffix = OTHER_NAMES.get(kind, f"{kind.__name__}Proto")
    (found,) = [
        each for name, each in load().items() if name.partition("hadoop.")[2].partition(".")[2] == suffix
    ]
    return found


def plain(name: str) -> str:
    return name.replace("_", "").lower()


def fields(kind: type) -> dict[str, tuple[Any, int, bool]]:
    """Return the type and the number of each field of a message class, and whether the field is zigzag-encoded."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        hint, number, *marks = typing.get_args(hints[field.name])
        found[field.name] = (hint, number, wire.ZIGZAG in marks)
    return found


def scalar(hint: Any) -> tuple[Any, bool]:
    """Return the type of one value of a field with this type hint, and whether the field may have several values."""
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    if isinstance(hint, types.UnionType):
        return typing.get_args(hint)[0], False
    return hint, False


def test_fields_are_hadoops() -> None:
    def check(kind: type) -> None:
        known = oracle(kind).DESCRIPTOR.fields_by_number
        for name, (hint, number, is_zigzag) in fields(kind).items():
            field, (single, is_repeated) = known[number], scalar(hint)
            assert plain(field.name) == plain(name)
            assert field.is_repeated == is_repeated
            assert (field.type == field.TYPE_SINT32) == is_zigzag
            if dataclasses.is_dataclass(single):
                assert field.message_type == oracle(typing.cast(type, single)).DESCRIPTOR
                continue
            expected = {
                str: (field.TYPE_STRING,),
                bytes: (field.TYPE_BYTES,),
                bool: (field.TYPE_BOOL,),
                int: (
                    field.TYPE_INT32, field.TYPE_INT64, field.TYPE_UINT32, field.TYPE_UINT64, field.TYPE_ENUM,
                    field.TYPE_SINT32,
                ),
            }  # fmt: skip
            assert field.type in expected[single]
            default = next(each for each in dataclasses.fields(kind) if each.name == name).default
            if default is not dataclasses.MISSING and default is not None and not is_repeated:
                assert default == field.default_value or field.type == field.TYPE_ENUM

    assert find_wrong(MESSAGES, check) == []


def test_required_fields_are_always_written() -> None:
    for kind in MESSAGES:
        required = {field.number for field in oracle(kind).DESCRIPTOR.fields if field.is_required}
        own = {field.name: field.default for field in dataclasses.fields(kind)}
        always = {number for name, (_, number, _) in fields(kind).items() if own[name] is dataclasses.MISSING}
        assert required <= always, kind


def values(field: Any, hint: Any) -> st.SearchStrategy[Any]:
    single, is_repeated = scalar(hint)
    strategy: st.SearchStrategy[Any]
    if dataclasses.is_dataclass(single):
        strategy = messages(typing.cast(type, single))
    elif field.type == field.TYPE_ENUM:
        strategy = st.sampled_from([value.number for value in field.enum_type.values])
    elif single is int:
        is_unsigned = field.type in (field.TYPE_UINT32, field.TYPE_UINT64)
        bits = 63 if field.type in (field.TYPE_INT64, field.TYPE_UINT64) else 31
        strategy = st.integers(0 if is_unsigned else -(2**bits), 2**bits - 1)
    elif single is str:
        strategy = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    else:
        strategy = {bytes: st.binary(max_size=200), bool: st.booleans()}[single]
    if is_repeated:
        return st.lists(strategy, max_size=3).map(tuple)
    return st.none() | strategy if isinstance(hint, types.UnionType) else strategy


@functools.cache
def messages(kind: type) -> st.SearchStrategy[Any]:
    known = oracle(kind).DESCRIPTOR.fields_by_number
    return st.builds(
        kind, **{name: values(known[number], hint) for name, (hint, number, _) in fields(kind).items()}
    )


def to_oracle(message: Any) -> Any:
    """Return the message as an object of protobuf's class, with the same values."""
    content = oracle(type(message))()
    by_number = content.DESCRIPTOR.fields_by_number
    for name, (_, number, _) in fields(type(message)).items():
        value, field = getattr(message, name), by_number[number]
        if value is None:
            continue
        if field.is_repeated:
            for item in value:
                if field.message_type:
                    getattr(content, field.name).add().CopyFrom(to_oracle(item))
                else:
                    getattr(content, field.name).append(item)
        elif field.message_type:
            getattr(content, field.name).CopyFrom(to_oracle(value))
        else:
            setattr(content, field.name, value)
    return content


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_both_ways(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(MESSAGES).flatmap(messages))
    kind = type(message)
    theirs = to_oracle(message)
    assert wire.decode(kind, theirs.SerializeToString()) == message
    ours = oracle(kind).FromString(wire.encode(message))
    assert ours.IsInitialized()
    # Fields with their default are not written, so the objects are compared by their values.
    assert wire.decode(kind, ours.SerializeToString()) == message
    assert wire.decode(kind, wire.encode(message)) == message
