"""Splits a text into words as a shell does, and joins words again. `${NAME}` stays as it is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_VARIABLE = re.compile(r"\$\{[^}]*\}")
_MARK = "\ue000"
"""Stands for a variable while a text is split. Its number follows, and the mark again."""
_MARKED = re.compile(f"{_MARK}([0-9]+){_MARK}")
_UNSAFE = re.compile(r"""[\s'"\\]""")


def split_words(text: str) -> list[str]:
    """Return the words of a text. Raises `ValueError` if a quote is not closed.

    >>> split_words("--name ${KERNEL_ID:-none yet} --conf 'a=b c'")
    ['--name', '${KERNEL_ID:-none yet}', '--conf', 'a=b c']
    """
    variables: list[str] = []

    def put_aside(match: re.Match[str]) -> str:
        variables.append(match.group())
        return f"{_MARK}{len(variables) - 1}{_MARK}"

    words = shlex.split(_VARIABLE.sub(put_aside, text.replace(_MARK, "")))
    return [_MARKED.sub(lambda match: variables[int(match.group(1))], word) for word in words]


def join_words(words: Iterable[str], *, for_shell: bool = False) -> str:
    """Return a text from which `split_words` makes these words.

    If `for_shell`, a shell makes them too: it fills in no variable. Otherwise only a word with a space, a quote or a
    backslash gets quotes, because a program splits the text.
    """
    if for_shell:
        return shlex.join(words)
    return " ".join(shlex.quote(word) if _UNSAFE.search(word) or not word else word for word in words)
