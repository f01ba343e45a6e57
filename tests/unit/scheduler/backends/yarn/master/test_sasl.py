"""DIGEST-MD5 against the example of RFC 2831, RC4 against published values, and messages that somebody changed."""

from __future__ import annotations

import pytest

from roost.scheduler.backends.yarn.master.sasl import SaslError, Seal, answer_challenge, rc4

CHALLENGE = b'realm="elwood.innosoft.com",nonce="OA6MG9tEQGm2hh",qop="%s",algorithm=md5-sess,charset=utf-8,cipher="%s"'


def answer(
    qop: bytes = b"auth", cipher: bytes = b"3des,rc4,des,rc4-56,rc4-40"
) -> tuple[str, str, Seal | None]:
    """Answer the challenge of RFC 2831, section 4. Return the reply, the server's expected proof, and the seal."""
    found = answer_challenge(
        CHALLENGE % (qop, cipher),
        user="chris",
        password="secret",
        uri="imap/elwood.innosoft.com",
        client_nonce="OA6MHXh6VqTrRk",
    )
    return found.reply.decode(), found.expected.decode(), found.seal


def test_the_example_of_the_rfc() -> None:
    reply, expected, seal = answer()
    assert "response=d388dad90d4bbd760a152321f2143af7" in reply
    assert expected == "rspauth=ea40f60335c427b5527b84dbabcdfffd"
    assert seal is None
    for part in ('username="chris"', 'digest-uri="imap/elwood.innosoft.com"', "nc=00000001", "qop=auth"):
        assert part in reply.split(",")


def test_the_weakest_protection_is_chosen() -> None:
    assert answer(b"auth-conf,auth-int,auth")[2] is None
    assert "qop=auth-int" in answer(b"auth-int,auth-conf")[0].split(",")
    assert 'cipher="rc4"' in answer(b"auth-conf")[0].split(",")


@pytest.mark.parametrize(
    ("qop", "cipher", "text"), [(b"auth-conf", b"3des,des", "3des"), (b"other", b"rc4", "other")]
)
def test_an_offer_that_is_not_known(qop: bytes, cipher: bytes, text: str) -> None:
    with pytest.raises(SaslError, match=text):
        answer(qop, cipher)


def test_a_challenge_without_a_nonce() -> None:
    with pytest.raises(SaslError, match="nonce"):
        answer_challenge(b'realm="default",qop="auth"', user="u", password="p", uri="/default")


@pytest.mark.parametrize(
    ("challenge", "text"),
    [
        (b'realm="\xff\xfe",nonce="n",qop="auth"', "UTF-8"),
        (b'nonce="n",realm="' + b"x" * 4_000, "4017 bytes"),
    ],
)
def test_a_challenge_that_breaks_the_rules(challenge: bytes, text: str) -> None:
    with pytest.raises(SaslError, match=text):
        answer_challenge(challenge, user="u", password="p", uri="/default")


def test_each_login_has_its_own_nonce() -> None:
    replies = {
        answer_challenge(CHALLENGE % (b"auth", b""), user="u", password="p", uri="x").reply for _ in "ab"
    }
    assert len(replies) == 2


@pytest.mark.parametrize(
    ("key", "clear", "sealed"),
    [  # the values that were published with RC4
        (b"Key", b"Plaintext", "bbf316e8d940af0ad3"),
        (b"Wiki", b"pedia", "1021bf0420"),
        (b"Secret", b"Attack at dawn", "45a01f645fc35b383552544b9bf5"),
    ],
)
def test_rc4(key: bytes, clear: bytes, sealed: str) -> None:
    assert rc4(key)(clear).hex() == sealed
    stream = rc4(key)
    assert stream(clear[:3]) + stream(clear[3:]) == bytes.fromhex(sealed)


def pair(*, is_private: bool) -> tuple[Seal, Seal]:
    session = bytes(range(16))
    return Seal(session, is_private=is_private), Seal(session, is_private=is_private, is_server=True)


@pytest.mark.parametrize("is_private", [False, True])
def test_sealed_messages(is_private: bool) -> None:
    client, server = pair(is_private=is_private)
    for text in (b"", b"one", bytes(70_000)):
        sealed = client.wrap(text)
        assert (text in sealed) == (not is_private or not text)
        assert server.unwrap(sealed) == text
        assert client.unwrap(server.wrap(text)) == text


@pytest.mark.parametrize("is_private", [False, True])
@pytest.mark.parametrize("place", [0, 5, 14, 16, 20])
def test_a_changed_message(is_private: bool, place: int) -> None:
    client, server = pair(is_private=is_private)
    sealed = bytearray(client.wrap(b"hello"))
    sealed[place] ^= 1
    with pytest.raises(SaslError, match="signature"):
        server.unwrap(bytes(sealed))


def test_repeated_reflected_and_short_messages() -> None:
    client, server = pair(is_private=False)
    sealed = client.wrap(b"hello")
    server.unwrap(sealed)
    for forged in (sealed, server.wrap(b"hello"), b"", bytes(15)):
        with pytest.raises(SaslError):
            server.unwrap(forged)
