"""Cleans text from other programs, such as a kernel's log, so that it cannot move the cursor or hide a line."""

from __future__ import annotations

import re
from typing import Any, TextIO

_COLOUR = r"\x1b\[[0-9;:]*m"
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
_ENDS_OF_LINES = re.compile(r"\r+\n?")
_UNWANTED = re.compile(_CONTROL)
_UNWANTED_BESIDE_COLOURS = re.compile(f"({_COLOUR})|{_CONTROL}")


def clean(text: str) -> str:
    r"""Return the text with control characters as JSON writes them (``\u001b``), apart from tabs and ends of lines."""
    return _UNWANTED.sub(_escape, _ENDS_OF_LINES.sub("\n", text))


def clean_but_colours(text: str) -> str:
    """Return the text as `clean` does, but keep its colours."""
    cleaned = _UNWANTED_BESIDE_COLOURS.sub(
        lambda found: found[1] or _escape(found), _ENDS_OF_LINES.sub("\n", text)
    )
    return f"{cleaned}\x1b[0m" if _has_open_colour(cleaned) else cleaned


class CleanOutput:
    """A text stream that writes cleaned text to another stream.

    Colours stay, as roost's own tables have some.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def uncleaned(self) -> TextIO:
        """The other stream, for a caller that moves the cursor and writes only text that is clean already."""
        return self._stream

    def write(self, text: str) -> int:
        self._stream.write(_UNWANTED_BESIDE_COLOURS.sub(lambda found: found[1] or _escape(found), text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _has_open_colour(text: str) -> bool:
    colours = re.findall(_COLOUR, text)
    return bool(colours) and colours[-1] not in ("\x1b[0m", "\x1b[m")
