"""Fills the places that a launcher's command keeps for its server's values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

REQUIRED = ("response_address", "public_key")
"""The places without which a launcher cannot answer."""
_PLACE = re.compile(r"(?<!\$)\{([a-z_]+)\}")
"""A place such as `{kernel_id}`. `${kernel_id}` belongs to a shell."""
_LOG_LEVEL = "EG_LOG_LEVEL"
_USUAL_LOG_LEVEL = "LOG_LEVEL"
_INFO = "20"


class MissingPlace(ValueError):
    """A launcher's command lacks a place for a value. The text is a sentence."""


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return the text with the values in their places. Unknown places stay as they are."""
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), text)


def fill_command(
    argv: Sequence[str], env: Mapping[str, str], values: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return a launcher's arguments and environment with all values in their places.

    Raises `MissingPlace` if the launcher would not learn the address for its answer, or the public key.
    """
    texts = " ".join([*argv, *env.values()])
    for name in REQUIRED:
        if name not in {found[1] for found in _PLACE.finditer(texts)}:
            raise MissingPlace(
                f"The launcher's command has no {{{name}}}: add it to argv as its documentation says. A launcher "
                "before Enterprise Gateway 3.0 cannot be kept: run `roost migrate` without --keep-launcher."
            )
    filled = {name: fill(value, values) for name, value in env.items()}
    return [fill(part, values) for part in argv], filled


def build_environment(env: Mapping[str, str], kernel_id: str, user: str) -> dict[str, str]:
    """Return the environment that the launchers' own servers would give them.

    Enterprise Gateway's launcher writes the kernel's key into its log at the level DEBUG, which is its default.
    """
    built = {"KERNEL_USERNAME": user, _LOG_LEVEL: _INFO, **env, "KERNEL_ID": kernel_id}
    for name in (_LOG_LEVEL, _USUAL_LOG_LEVEL):
        if _is_below_info(built.get(name, _INFO)):
            built[name] = _INFO
    return built


def _is_below_info(level: str) -> bool:
    return int(level) < int(_INFO) if level.isdecimal() else level.upper() in ("DEBUG", "NOTSET")
