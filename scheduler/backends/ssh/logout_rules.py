"""How systemd treats a user's processes after a logout, from the output of `loginctl`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LogoutRules:
    """The rules for one user. `None`: systemd does not know this user."""

    ends_processes: bool
    """True if systemd ends the processes of a session when the session ends."""
    lingers: bool | None
    """True if systemd keeps the user's own processes when the user has no session."""


def read_logout_rules(manager: str, user: str, name: str) -> LogoutRules | None:
    """Return the rules for the user `name`; `None` without systemd.

    `manager` is the output of `loginctl show-user` without an argument, and `user` its output for this user.
    """
    rules, facts = _read_properties(manager), _read_properties(user)
    if "KillUserProcesses" not in rules:
        return None
    return LogoutRules(ends_processes=_ends(rules, name), lingers=_is_yes(facts.get("Linger")))


def _ends(rules: dict[str, str], name: str) -> bool:
    """True if logind ends the user's processes. The order of the rules is that of logind.conf(5)."""
    if name in rules.get("KillExcludeUsers", "root").split():
        return False
    if only := rules.get("KillOnlyUsers", "").split():
        return name in only
    return rules["KillUserProcesses"] == "yes"


def _is_yes(value: str | None) -> bool | None:
    return None if value is None else value == "yes"


def _read_properties(text: str) -> dict[str, str]:
    """Return the lines `name=value`."""
    return {name: value for name, mark, value in (line.partition("=") for line in text.splitlines()) if mark}
