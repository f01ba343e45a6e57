"""Finds secrets in an old kernelspec, so that the report names them and never shows them."""

from __future__ import annotations

import re

_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY(?!TAB|WORD|BOARD)"
    r"|(^|[^A-Z])(AUTH|AUTHORIZATION|BEARER|COOKIE|CREDS?|JWT|PASS|PAT|PW|PWD|SIG|SIGNATURE)([^A-Z]|$)",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"\w://[^/\s@]*:[^/\s@]*@|\w://[^/\s:@]+@|(^|[\s,;='\"])[\w.-]+:[^/\s@]+@(?!sha256:)")
"""A URL with a user or a password, or `USER:PASSWORD@HOST`. An image may have the digest `@sha256:…`."""
_ASSIGNMENT = re.compile(r"""([A-Za-z][\w.-]*)["']?\s*[=:]|--?([A-Za-z][\w.-]*)\s""")
"""A name to which a text gives a value, as in `NAME=…`, `"name": …` and `--name …`."""
_LONGEST_SHOWN = 120
_HIDDEN = "(a secret, not shown)"


def is_secret(name: str, value: str = "") -> bool:
    """True if a variable or option of this name is probably a secret, or if the value contains one.

    The value contains one if it is a URL with a user or a password, a host with both, or if it assigns to such a name.
    """
    if _NAME.search(name) or _IN_URL.search(value):
        return True
    return any(_NAME.search(found) for names in _ASSIGNMENT.findall(value) for found in names)


def show(name: str, value: object) -> str:
    """Return a value for a sentence: a secret is hidden, a long value is cut, and an object is only mentioned."""
    if not isinstance(value, (str, int, float)):
        return "a value of another kind"
    text = " ".join(str(value).split())
    if is_secret(name, text):
        return _HIDDEN
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
