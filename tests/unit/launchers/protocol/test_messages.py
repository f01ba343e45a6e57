"""The messages whose JSON must stay: agents of earlier versions run in pods, as long as their kernels do."""

from __future__ import annotations

from typing import Any

import pytest

from roost.launchers.protocol.messages import Launch
from roost.placement.model.json_codec import WireError, decode, encode_message

LAUNCH: dict[str, Any] = {
    "kernel_id": "k",
    "launch_id": "1",
    "lease_id": "roost:k:s/1",
    "argv": ["python", "-f", "{connection_file}"],
    "env": {"PATH": "/bin"},
    "cwd": "/",
    "connection": {"key": "secret"},
    "may_fork": False,
    "context": {"umask": 63},
    "deadline_s": 20.0,
    "journal": {"memory_bytes": 7},
}


def test_an_earlier_agent_can_read_a_launch() -> None:
    """A restart goes to the agent that runs in the pod, and an agent refuses fields that it does not know."""
    launch = decode(Launch, LAUNCH)
    assert encode_message(launch) == LAUNCH
    assert "secret" not in repr(launch)
    assert "/bin" not in repr(launch)
    for name in ("kernel_id", "launch_id", "argv", "env", "cwd", "connection", "lease_id"):
        with pytest.raises(WireError, match=f"lacks the field '{name}'"):
            decode(Launch, {key: value for key, value in LAUNCH.items() if key != name})
