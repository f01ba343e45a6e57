"""The options that one kernel can set: lines of sh that prepare its environment, and its folder on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.launchers.protocol.messages import FOLDER_OPTION
from roost.scheduler.errors import ConfigError

PROLOGUE = "prologue"
FOLDER = FOLDER_OPTION
_MOST_CHARACTERS = 16_384


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for values that no host can use."""
    for name in (PROLOGUE, FOLDER):
        text = options.get(name, "")
        if "\0" in text or len(text) > _MOST_CHARACTERS:
            raise ConfigError(
                f"the option {name} has a zero byte, or more than {_MOST_CHARACTERS:,} characters: shorten it."
            )
    folder = options.get(FOLDER, "")
    if folder and not folder.startswith(("/", "~/")) and folder != "~":
        raise ConfigError(f"{FOLDER} = {folder!a:.80} is no whole path: begin it with / or ~/.")
