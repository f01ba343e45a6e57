"""Checks a new kernelspec by the code that starts kernels, and takes out what roost would refuse at each start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.provisioners.kernelspecs import check_config
from roost.scheduler.backends.registry import backend_names
from roost.scheduler.errors import ConfigError

from .draft import Draft


def drop_refused(draft: Draft) -> None:
    """Take the options and variables out that roost would refuse, with a line for each. Its value may be a secret."""
    has_backend = draft.backend in backend_names()
    base: dict[str, Any] = {"backend": draft.backend} if has_backend else {}
    for name in [name for name in draft.env if name.startswith("KERNEL_")]:
        if not _is_accepted(base, {name: draft.env[name]}):
            del draft.env[name]
            text = f"roost reads {name} as a wish of its own and refuses this value: rename it"
            draft.say(f"env {name}", "decision", text, "left out")
    if has_backend:
        for name in [
            name
            for name in draft.options
            if not _is_accepted({**base, "options": {name: draft.options[name]}})
        ]:
            del draft.options[name]
            draft.say(f"options.{name}", "decision", "roost refuses the value: set it by hand", "left out")
    own = base if has_backend else {}
    skipped = () if has_backend else ("backend_options",)
    for name in [name for name in draft.config if name not in skipped]:
        if not _is_accepted({**own, name: draft.config[name]}):
            del draft.config[name]
            draft.say(f"config.{name}", "decision", "roost refuses the value: set it by hand", "left out")


def _is_accepted(config: Mapping[str, Any], env: Mapping[str, str] | None = None) -> bool:
    try:
        check_config(config, env or {})
    except ConfigError:
        return False
    return True
