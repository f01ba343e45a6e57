"""Outputs of `loginctl` on several systems, and their meaning for kernels after a logout."""

from __future__ import annotations

import pytest

from roost.scheduler.backends.ssh.logout_rules import LogoutRules, read_logout_rules

# Debian 12, systemd 252: `loginctl show-user` without an argument.
DEBIAN = """\
EnableWallMessages=no
NAutoVTs=6
KillUserProcesses=no
RebootToFirmwareSetup=no
RebootToBootLoaderMenu=18446744073709551615
IdleHint=no
IdleSinceHint=1732627451016493
BlockInhibited=
DelayInhibited=sleep
InhibitDelayMaxUSec=5s
UserStopDelayUSec=10s
HandlePowerKey=poweroff
IdleAction=ignore
PreparingForShutdown=no
Docked=no
LidClosed=no
OnExternalPower=yes
RemoveIPC=yes
RuntimeDirectorySize=3355443200
InhibitorsMax=8192
SessionsMax=8192
KillExcludeUsers=root
"""
# Fedora: systemd's own default is to end the processes.
ENDS = DEBIAN.replace("KillUserProcesses=no", "KillUserProcesses=yes")
# `loginctl show-user ada`.
ADA = """\
UID=1000
GID=1000
Name=ada
Timestamp=Thu 2026-11-26 09:12:11 UTC
TimestampMonotonic=13124412
RuntimePath=/run/user/1000
Service=user@1000.service
Slice=user-1000.slice
Display=3
State=active
Sessions=5 3
IdleHint=no
IdleSinceHint=0
IdleSinceHintMonotonic=0
Linger=no
"""


@pytest.mark.parametrize(
    ("manager", "user", "name", "rules"),
    [
        (DEBIAN, ADA, "ada", LogoutRules(ends_processes=False, lingers=False)),
        (ENDS, ADA, "ada", LogoutRules(ends_processes=True, lingers=False)),
        (ENDS, ADA.replace("Linger=no", "Linger=yes"), "ada", LogoutRules(ends_processes=True, lingers=True)),
        (ENDS, "", "root", LogoutRules(ends_processes=False, lingers=None)),
        (ENDS.replace("=root", "=bob ada"), "", "ada", LogoutRules(ends_processes=False, lingers=None)),
        (ENDS.replace("=root", "=bob adam"), "", "ada", LogoutRules(ends_processes=True, lingers=None)),
        (DEBIAN + "KillOnlyUsers=bob ada\n", ADA, "ada", LogoutRules(ends_processes=True, lingers=False)),
        (ENDS + "KillOnlyUsers=bob\n", ADA, "ada", LogoutRules(ends_processes=False, lingers=False)),
        ("KillUserProcesses=yes", "", "root", LogoutRules(ends_processes=False, lingers=None)),
        ("", ADA, "ada", None),
        ("Failed to connect to bus: No such file or directory", "", "ada", None),
    ],
)
def test_rules(manager: str, user: str, name: str, rules: LogoutRules | None) -> None:
    assert read_logout_rules(manager, user, name) == rules
