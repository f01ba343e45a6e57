"""JSON from a stranger: UTF-8, not nested too deeply, and with one sentence for each refusal."""

from __future__ import annotations

import json
from typing import Any

MOST_LEVELS = 100
"""The greatest depth of a document. Python's own functions for JSON fail at about 1,000 levels."""
_TOO_DEEP = f"is not JSON of at most {MOST_LEVELS} levels"


class UnfitText(ValueError):
    """A text that is no usable JSON. The error's own text is a predicate, such as `is not UTF-8`."""


class TooDeep(UnfitText):
    """A value has too many levels."""


def parse_json(content: bytes | str) -> Any:
    """Return the value of a JSON text. Raises `UnfitText`."""
    try:
        value = json.loads(content.decode() if isinstance(content, bytes) else content)
    except UnicodeDecodeError as problem:
        raise UnfitText(f"is not UTF-8 (byte {problem.start})") from None
    except RecursionError:
        raise UnfitText(_TOO_DEEP) from None
    except ValueError as problem:
        raise UnfitText(f"is not JSON: {problem}") from None
    try:
        check_depth(value)
    except TooDeep:
        raise UnfitText(_TOO_DEEP) from None
    return value


def check_depth(value: Any, *, most_levels: int = MOST_LEVELS, most_items: int | None = None) -> None:
    """Raise `TooDeep` for a value with more than `most_levels` below its own. Raise `UnfitText` for too many items.

    A YAML file can name one part many times. Each time counts.
    """
    level, found = [value], 0
    for _ in range(most_levels + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, (list, dict)):
                found += len(each)
                if most_items is not None and found > most_items:
                    raise UnfitText(f"has more than {most_items:,} items")
                items = each.values() if isinstance(each, dict) else each
                inner += [item for item in items if isinstance(item, (list, dict))]
        if not inner:
            return
        level = inner
    raise TooDeep(f"has more than {most_levels} levels")
