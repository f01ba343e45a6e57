"""The network of the hosts of one test: 10.249.<number>.0/24, in a namespace with a bridge.

| address | host |
|---|---|
| 10.249.<number>.<10 + i> | host i |
| 10.249.<number>.254 | this machine |

This machine gets one network device. The device ends with the namespace, and so with the test's process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from kit.machine.network_cables import connect, disconnect, has_route, ip

from .held_process import HeldProcess

_NUMBERS = range(1, 255)
_SCRIPT = """
echo; read -r go
ip link add hosts type bridge
ip link set hosts up
ip link set machine master hosts up
echo; read -r end || true
"""
_DISABLED, _FORWARDING = "0", "3"  # states of a port: linux/if_bridge.h


class Switch:
    """A bridge to which the hosts and this machine are connected. It starts at once.

    `folder` gets its log, and is the alias of this machine's device.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._device = folder, ""
        log = folder / "switch.log"
        self._process = HeldProcess(["unshare", "--net", "sh", "-euc", _SCRIPT], log, environment)
        try:
            self._process.await_step()
            self.number = self._claim()
            self._process.go()
            self._process.await_step()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> int:
        """Connect this machine under the first number that is free. The name of the device is the claim."""
        for number in _NUMBERS:
            device, network = f"sshhosts{number}", f"10.249.{number}"
            if has_route(f"{network}.0/24"):
                continue
            try:
                connect(device, "machine", self._process.pid)
            except RuntimeError as problem:
                if "File exists" in str(problem):
                    continue
                raise
            self._device = device
            ip("link", "set", device, "alias", str(self._folder))
            ip("addr", "add", f"{network}.254/24", "dev", device)
            ip("link", "set", device, "up")
            return number
        raise RuntimeError("every network of SSH hosts is in use")

    def address(self, index: int) -> str:
        """Return the address of host `index`, which counts from 1."""
        return f"10.249.{self.number}.{10 + index}"

    def plug(self, index: int, pid: int) -> None:
        """Connect the network namespace of `pid`. Its device is eth0, with the same hardware address each time."""
        mac = f"02:00:f9:{self.number:02x}:00:{index:02x}"  # neighbours remember it
        connect(f"n{index}", "eth0", pid, pid=self._process.pid, peer_mac=mac)
        self._run("ip", "link", "set", f"n{index}", "master", "hosts", "up")

    def unplug(self, index: int) -> None:
        """Remove the cable of a host. May be repeated."""
        disconnect(f"n{index}", pid=self._process.pid)

    def cut(self, index: int) -> None:
        """Drop all packets from and to a host. The host itself does not notice."""
        self._run("bridge", "link", "set", "dev", f"n{index}", "state", _DISABLED)

    def mend(self, index: int) -> None:
        self._run("bridge", "link", "set", "dev", f"n{index}", "state", _FORWARDING)

    def close(self) -> None:
        """Remove the bridge and all cables. May be repeated."""
        if self._device:
            disconnect(self._device)
        self._process.end()

    def _run(self, *command: str) -> None:
        subprocess.run(["nsenter", "--net", "--target", str(self._process.pid), *command], check=True)
