"""The network of a cluster: 10.<number>.0.0/16, a bridge, and a cable (veth) to the machine's own network namespace.

| address | host |
|---|---|
| 10.<number>.0.1 | the control plane, which is the router too |
| 10.<number>.0.<10 + i> | node i |
| 10.<number>.0.254 | this machine |
| 10.<number>.<i>.0/24 | the pods of node i |
| 10.<number>.255.0/24 | services; only 10.<number>.255.1 (the API server) listens |

The machine gets one network device and one route. Both vanish with the namespace at the other end of the cable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kit.machine.network_cables import connect, disconnect, has_route, ip

NUMBERS = range(201, 217)


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses of one cluster."""

    number: int

    @property
    def device(self) -> str:
        """The name of the network device at this machine's end of the cable to the cluster."""
        return f"kubelets{self.number}"

    @property
    def cgroup(self) -> str:
        """The name of the cluster's cgroup in each hierarchy."""
        return f"kubelets{self.number}"

    @property
    def all(self) -> str:
        return f"10.{self.number}.0.0/16"

    @property
    def control_plane(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def services(self) -> str:
        return f"10.{self.number}.255.0/24"

    @property
    def api_service(self) -> str:
        return f"10.{self.number}.255.1"

    def node(self, index: int) -> str:
        return f"10.{self.number}.0.{10 + index}"

    def pods(self, index: int) -> str:
        return f"10.{self.number}.{index}.0/24"

    def router_script(self) -> str:
        """Return the commands that make the bridge, in the control plane's namespaces."""
        return f"""
            ip link set lo up
            ip addr add {self.api_service}/32 dev lo
            ip link add nodes address 02:00:0a:{self.number:02x}:00:01 type bridge
            ip addr add {self.control_plane}/24 dev nodes
            ip link set nodes up
            ip link set machine master nodes up
            echo 1 > /proc/sys/net/ipv4/ip_forward
        """

    def node_script(self, index: int) -> str:
        """Return the commands that connect a node, in the node's namespaces."""
        return f"""
            ip link set lo up
            ip addr add {self.node(index)}/24 dev eth0
            ip link set eth0 up
            ip route add default via {self.control_plane}
            echo 1 > /proc/sys/net/ipv4/ip_forward
        """

    def plug_script(self, index: int) -> str:
        """Return the commands that connect a node's cable to the bridge, in the control plane's namespaces."""
        return f"""
            ip link set n{index} master nodes up
            ip route replace {self.pods(index)} via {self.node(index)}
        """


def free_networks() -> Iterator[Network]:
    """Yield the networks that this machine has no route to."""
    for number in NUMBERS:
        network = Network(number)
        if not has_route(network.all):
            yield network


def connect_machine(network: Network, pid: int) -> None:
    """Make the cable between this machine and the namespaces of `pid`."""
    connect(network.device, "machine", pid)
    ip("addr", "add", f"10.{network.number}.0.254/24", "dev", network.device)
    ip("link", "set", network.device, "up")
    ip("route", "add", network.all, "via", network.control_plane, "dev", network.device)


def disconnect_machine(network: Network) -> None:
    """Remove the cable of `connect_machine` and its route."""
    disconnect(network.device)


def connect_node(index: int, control_plane_pid: int, node_pid: int) -> None:
    """Make the cable between the namespaces of a node and of the control plane. It ends with the node."""
    connect(f"n{index}", "eth0", node_pid, pid=control_plane_pid)
