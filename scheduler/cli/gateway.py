"""`roost gateway`: runs the gateway, and manages the tokens of its people."""

from __future__ import annotations

import argparse
import getpass
import logging
import time
from functools import partial
from importlib import import_module
from typing import Any

from roost.placement.model.format import format_age
from roost.provisioners.gateway.audit import Audit
from roost.provisioners.gateway.operator_socket import list_kernels, stop_kernels
from roost.provisioners.gateway.relays import write_rule
from roost.provisioners.gateway.settings import build_settings, read_config
from roost.provisioners.gateway.token_file import NAME_RULE, Token, TokenFile, is_name
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.errors import ConfigError

from .options import print_answer
from .tables import build_table, open_console, print_table

_NEEDS = "roost gateway needs Jupyter Server: run `pip install jupyter_server`."


def serve(arguments: argparse.Namespace) -> int:
    """Run a gateway until it is stopped."""
    try:
        server = import_module("roost.provisioners.gateway.server")
    except ImportError as problem:
        if (problem.name or "").partition(".")[0] not in ("jupyter_server", "tornado", "prometheus_client"):
            raise
        raise ConfigError(_NEEDS) from None
    from roost.scheduler.config.files import load_settings
    from roost.scheduler.core.caps import check_user

    settings, _ = load_settings(DEFAULT_BACKEND, {})
    rules = server.UserRules(
        check_user=partial(check_user, settings=settings), default_timeout_s=settings.default_launch_timeout_s
    )
    server.serve(rules, arguments.config)
    return 0


def add_token(arguments: argparse.Namespace) -> int:
    """Add a token and print it, this one time."""
    if not is_name(arguments.user):
        raise ConfigError(f"{arguments.user!a:.80} is not possible as a name: a name has {NAME_RULE}.")
    audit = _open_audit()  # it fails before there is a token that nobody has seen
    text, token = TokenFile().add(arguments.user, arguments.days)
    audit.write("token added", person=token.user, sentence=token.id)

    def show() -> None:
        print(text)
        print(f"This is the token of {token.user} for {arguments.days:g} days. Nobody can show it again.")

    return print_answer(arguments, {"token": text, **_to_document(token)}, show)


def list_tokens(arguments: argparse.Namespace) -> int:
    """List the tokens, without their texts."""
    tokens = sorted(TokenFile().list_all(), key=lambda token: (token.user, token.added_at))

    def show() -> None:
        if not tokens:
            print("There are no tokens: `roost gateway token add NAME` makes one.")
            return
        table = build_table("ID", "USER", "AGE", "EXPIRES")
        now = time.time()
        for token in tokens:
            left_s = token.expires_at - now
            expires = f"in {format_age(left_s)}" if left_s > 0 else "has expired"
            table.add_row(token.id, token.user, format_age(now - token.added_at), expires)
        print_table(open_console(), table)

    return print_answer(arguments, {"tokens": [_to_document(token) for token in tokens]}, show)


def remove_tokens(arguments: argparse.Namespace) -> int:
    """Remove a token by its id, or all tokens of a user. Their websockets close within a minute."""
    audit = _open_audit()
    removed = TokenFile().remove(arguments.name)
    if not removed:
        raise ConfigError(f"There is no token {arguments.name!r:.80}: `roost gateway token list` lists them.")
    for token in removed:
        audit.write("token removed", person=token.user, sentence=token.id)
        if not arguments.json:
            print(f"Removed {token.id} of {token.user}")
    return print_answer(arguments, {"removed": [_to_document(token) for token in removed]}, lambda: None)


def list_all(arguments: argparse.Namespace) -> int:
    """List the kernels of all people of the gateway that runs."""
    kernels = sorted(list_kernels(), key=lambda kernel: (str(kernel.get("user", "")), str(kernel["id"])))

    def show() -> None:
        if not kernels:
            print("There are no kernels.")
            return
        table = build_table("KERNEL", "USER", "KERNELSPEC", "BACKEND", "STATE")
        for each in kernels:
            names = (each["id"], each.get("user", "nobody"), each["name"], each.get("backend", "-"))
            table.add_row(*names, each["execution_state"])
        print_table(open_console(), table)

    return print_answer(arguments, {"kernels": kernels}, show)


def stop_user(arguments: argparse.Namespace) -> int:
    """End the kernels of a user of the gateway, for `roost stop --user`."""
    stopped = stop_kernels(arguments.user)
    if not arguments.json:
        for kernel_id in stopped:
            print(f"{kernel_id} stopped")
        if not stopped:
            print(f"{arguments.user} has no kernels.")
    outcomes = [{"id": kernel_id, "outcome": "stopped"} for kernel_id in stopped]
    return print_answer(arguments, {"stopped": outcomes}, lambda: None)


def print_rule(arguments: argparse.Namespace) -> int:
    """Print the line for sudoers by which the gateway's account may start kernels as people."""
    settings = build_settings(read_config(arguments.config))
    settings.check_impersonation()
    if not settings.impersonate:
        raise ConfigError("c.RoostGateway.impersonate names no backend: set it to ['local'], for example.")
    line = write_rule(getpass.getuser(), arguments.group, settings.impersonate)
    return print_answer(arguments, {"line": line}, lambda: print(line))


def _to_document(token: Token) -> dict[str, Any]:
    return {"id": token.id, "user": token.user, "added_at": token.added_at, "expires_at": token.expires_at}


def _open_audit() -> Audit:
    settings = build_settings(read_config())
    return Audit(settings.audit_file, logging.getLogger(__name__), source="file")
