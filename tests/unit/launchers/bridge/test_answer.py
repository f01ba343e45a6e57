"""Answers of launchers, and texts that are none."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest

from kit.jupyter.odd_launcher import an_answer, load_seal
from roost.launchers.bridge.answer import AnswerKey, RefusedAnswer

KERNEL_ID = "0123456789abcdef-1"
SEAL = load_seal()


@pytest.fixture(scope="module")
def key() -> AnswerKey:
    return AnswerKey()


def seal(pair: AnswerKey, /, version: object = 1, **changes: Any) -> bytes:
    return SEAL["seal"](an_answer(KERNEL_ID, **changes), pair.public, version)


def test_an_answer_is_read(key: AnswerKey) -> None:
    answer = key.read(seal(key, curve_publickey="x" * 40) + b"\n", KERNEL_ID)
    assert answer.ports["shell_port"] == 5_000
    assert (answer.comm_port, answer.key, answer.curve_public) == (5_010, b"0123456789abcdef", b"x" * 40)
    assert len(answer.all_ports) == 6
    assert "0123456789abcdef" not in repr(answer)
    assert key.read(seal(key), KERNEL_ID).curve_public is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "version 2"),
        ({"kernel_id": "other"}, "another kernel"),
        ({"shell_port": 0}, "shell_port"),
        ({"shell_port": True}, "shell_port"),
        ({"comm_port": 70_000}, "comm_port"),
        ({"comm_port": 5_000}, "twice"),
        ({"key": ""}, "key"),
        ({"key": ["0123456789abcdef"]}, "key"),
        ({"signature_scheme": "hmac-crc32"}, "signature scheme"),
        ({"signature_scheme": "hmac-shake_128"}, "signature scheme"),
        ({"transport": "ipc"}, "loopback"),
        ({"ip": "10.0.0.7"}, "loopback"),
        ({"ip": []}, "loopback"),
        ({"curve_publickey": "short"}, "CURVE"),
    ],
)
def test_fields_that_cannot_be(key: AnswerKey, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedAnswer, match=reason):
        key.read(seal(key, **changes), KERNEL_ID)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        random.Random(0).randbytes(4_096),
        b"A" * 4_096,
        b"\xff\xfe",
        base64.b64encode(b"{}"),
        base64.b64encode(b"[" * 50_000),
        base64.b64encode(b'{"version": 1}'),
        base64.b64encode(b'{"version": 1, "key": 7, "conn_info": null}'),
        base64.b64encode(b'{"version": 1, "key": "AAAA", "conn_info": "AAAA"}'),
        base64.b64encode(b'{"version": [1], "shell_port": 1}'),
    ],
)
def test_garbage_is_refused(key: AnswerKey, content: bytes) -> None:
    with pytest.raises(RefusedAnswer):
        key.read(content, KERNEL_ID)


def test_an_answer_to_another_launch_is_refused(key: AnswerKey) -> None:
    """An answer that somebody has kept from an earlier launch is encrypted with the key of that launch."""
    earlier = seal(AnswerKey())
    with pytest.raises(RefusedAnswer, match="public key of this launch"):
        key.read(earlier, KERNEL_ID)


@pytest.mark.parametrize("place", [0, 100, 300, -20])
def test_a_changed_answer_is_refused(key: AnswerKey, place: int) -> None:
    payload = json.loads(base64.b64decode(seal(key)))
    sealed = bytearray(base64.b64decode(payload["key"]))
    sealed[place % len(sealed)] ^= 1
    payload["key"] = base64.b64encode(sealed).decode()
    with pytest.raises(RefusedAnswer):
        key.read(base64.b64encode(json.dumps(payload).encode()), KERNEL_ID)


@pytest.mark.parametrize("is_encrypted", [True, False])
def test_version_0_is_refused_by_its_name(key: AnswerKey, is_encrypted: bool) -> None:
    info = an_answer(KERNEL_ID)
    plain = base64.b64encode(json.dumps(info).encode())
    with pytest.raises(RefusedAnswer, match="version 0"):
        key.read(SEAL["seal_old"](info, KERNEL_ID) if is_encrypted else plain, KERNEL_ID)
