"""Credentials files: both formats, lengths of all sizes, and files that have no such format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.machine.cases import find_wrong
from roost.scheduler.backends.yarn.master.schema import Token
from roost.scheduler.backends.yarn.master.tokens import Credentials, read_credentials, write_credentials
from roost.scheduler.backends.yarn.master.wire import WireFormatError

TOKEN = Token(identifier=b"\x01\x02", password=b"pw", kind="YARN_AM_RM_TOKEN", service="127.0.0.1:8030")
WRITABLE = (
    b"HDTS\x00"  # magic, version
    b"\x01\x01a\x02\x01\x02\x02pw\x10YARN_AM_RM_TOKEN\x0e127.0.0.1:8030"  # one token, named "a"
    b"\x01\x05roost\x8f\xc8" + bytes(200)  # one secret; 0x8f is -113: a length of one byte follows
)


def test_hadoops_own_format() -> None:
    credentials = Credentials(tokens={"a": TOKEN}, secrets={"roost": bytes(200)})
    assert read_credentials(WRITABLE) == credentials
    assert write_credentials(credentials) == WRITABLE


sizes = st.sampled_from([0, 1, 111, 112, 127, 128, 255, 256, 65_535, 65_536])
blocks = st.builds(lambda size, fill: bytes([fill]) * size, sizes, st.integers(0, 255))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
tokens = st.builds(Token, identifier=blocks, password=blocks, kind=names, service=names)
credentials = st.builds(
    Credentials,
    tokens=st.dictionaries(names, tokens, max_size=3),
    secrets=st.dictionaries(names, blocks, max_size=3),
)


@given(credentials=credentials, as_protobuf=st.booleans())
def test_what_is_written_is_read(credentials: Credentials, as_protobuf: bool) -> None:
    assert read_credentials(write_credentials(credentials, as_protobuf=as_protobuf)) == credentials


def test_a_file_that_was_cut() -> None:
    def check(size: int) -> None:
        with pytest.raises(WireFormatError):
            read_credentials(WRITABLE[:size])

    assert find_wrong(range(len(WRITABLE)), check) == []


@pytest.mark.parametrize("data", [b"HDTS\x07\x00\x00", b"PK\x03\x04 a zip", b"HDTS\x00\x80\x00"])
def test_no_credentials(data: bytes) -> None:
    with pytest.raises(WireFormatError):
        read_credentials(data)


def test_secrets_are_not_shown() -> None:
    assert "pw" not in repr(Credentials(tokens={"a": TOKEN}, secrets={"s": b"hidden"}))
