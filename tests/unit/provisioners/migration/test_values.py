"""Words, amounts and secrets."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from roost.provisioners.migration.amounts import (
    format_memory,
    read_cpus,
    read_memory,
    read_names,
    read_seconds,
    round_up_to_gib,
)
from roost.provisioners.migration.secrets import is_secret, show
from roost.provisioners.migration.volumes import is_supported, join_volumes
from roost.provisioners.migration.words import join_words, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  'b c' \"d e\"", ["a", "b c", "d e"]),
        ("--x='1 2' a\\ b", ["--x=1 2", "a b"]),
        ("${A:-x y} '${B}'", ["${A:-x y}", "${B}"]),
        ("a.zip#x # y", ["a.zip#x", "#", "y"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert split_words(join_words(words)) == words
    assert shlex.split(join_words(words, for_shell=True)) == words


def test_an_open_quote() -> None:
    with pytest.raises(ValueError, match="quotation"):
        split_words("a 'b")


def test_cpus_and_memory() -> None:
    assert [read_cpus(text) for text in ("2500m", "2", 0.5)] == [2.5, 2, 0.5]
    assert [read_memory(text) for text in ("6Gi", "1G", "512Mi")] == [6 << 30, 10**9, 512 << 20]
    jvm = ("8g", "4096", "512M", "2GB")
    assert [read_memory(text, is_jvm=True) for text in jvm] == [8 << 30, 4 << 30, 512 << 20, 2 << 30]
    assert [format_memory(size) for size in (6 << 30, 1536 << 20, 10**9)] == ["6GiB", "1536MiB", "1000000000"]
    assert round_up_to_gib((1 << 30) + 1) == 2 << 30
    assert [read_seconds(value) for value in ("30", 1.5)] == [30, 1.5]
    assert read_names("[ 'a', \"b\" c]") == ["a", "b", "c"]


@pytest.mark.parametrize("read", [read_cpus, read_memory, read_seconds])
@pytest.mark.parametrize("value", ["", "x", "-1", "0", "nan", "inf", "1e999", None, [], True, 10**400])
def test_wrong_amounts(read: Callable[[object], float], value: object) -> None:
    with pytest.raises(ValueError, match=r"no (amount|number)"):
        read(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GIT_TOKEN", ""), ("db-password", ""), ("spark.ssl.keyPassword", ""), ("API_KEY", ""), ("AUTH", ""),
        ("URL", "https://ada:x@h/"), ("URL", "https://x@h/"), ("A", "b TOKEN=1"), ("A", '{"password": 1}'),
        ("A", "--password x"), ("PASSPHRASE", ""), ("GITHUB_PAT", ""), ("DB_PW", ""), ("JWT", ""), ("API_CREDS", ""),
        ("A", "Authorization: Bearer x"), ("A", "https://h/c?sv=1&sig=x"), ("A", "B=ada:x@h"),
        ("HOSTS", "ada:x@h"), ("HOSTS", "h1, ada:x@h2"),
    ],
)  # fmt: skip
def test_secrets(name: str, value: str) -> None:
    assert is_secret(name, value)
    assert "not shown" in show(name, value or "hunter2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEYTAB", "/a"),
        ("PATH", "/a:/b"),
        ("URL", "http://h:80/a"),
        ("AUTHOR", "ada"),
        ("IMAGE", "a.b/c:1"),
        ("IMAGE", "a.b:5000/c:1@sha256:ab"),
        ("HOSTS", "ada@h1,h2"),
        ("PATTERN", "a"),
        ("DESIGN", "x"),
        ("SIGNALS", "2"),
    ],
)
def test_what_is_no_secret(name: str, value: str) -> None:
    assert not is_secret(name, value)
    assert show(name, value) == value


def test_volumes() -> None:
    volumes = '[{"name": "a", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}, {name: b, nfs: {}}]'
    joined, left = join_volumes(volumes, "[{name: a, mountPath: /data}, {name: b, mountPath: /b}]")
    assert joined == ["data:/data:ro"]
    assert left == ["a mount is of no volume claim"]
    assert is_supported(volumes, "[{name: a, mountPath: /data}, {name: b, mountPath: /b, subPath: x}]")
    assert not is_supported("[{name: a, cephfs: {}}]", "[{name: a, mountPath: /a}]")
    assert not is_supported("[{name: a, nfs: {}}]", "[{name: a, mountPath: /roost/x}]")
    with pytest.raises(ValueError, match="no list"):
        join_volumes("{}", "")
    with pytest.raises(ValueError, match="no JSON or YAML"):
        join_volumes("[{", "")
