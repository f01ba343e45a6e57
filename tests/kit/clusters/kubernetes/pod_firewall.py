"""NetworkPolicies of a test cluster, enforced by firewall rules in the network namespace of each pod.

A network plugin does this in real clusters. Like a plugin, this module learns the addresses of pods from the
API server. It knows only the features that roost's examples use: ingress rules with labels and TCP ports.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

from kit.clusters.kubelets import Kubelets

EVERY_S = 0.1
"""How often the policies and pods are read."""
_HEAD = """
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
"""


class PodFirewall:
    """A firewall that enforces all NetworkPolicies of a cluster while the `with` block lasts."""

    def __init__(self, cluster: Kubelets) -> None:
        self._cluster = cluster
        self._rules: dict[str, str] = {}
        """The rules of each pod, by the pod's uid."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._problem: BaseException | None = None

    def __enter__(self) -> PodFirewall:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for uid in self._rules:
            self._apply(uid, "")
        if self._problem is not None:
            raise self._problem

    def rules(self, uid: str) -> str:
        """Return the rules of a pod; empty if no policy restricts it."""
        return self._rules.get(uid, "")

    def packets(self, uid: str, port: int) -> int:
        """Return how many packets the rules for this port have accepted since they were made."""
        shown = self._in_pod(uid, "iptables", "-nvxL", "INPUT").stdout
        return sum(int(line.split()[0]) for line in shown.splitlines() if re.search(rf"dpt:{port}\b", line))

    def _run(self) -> None:
        try:
            while not self._ending.wait(EVERY_S):
                self._look()
        except BaseException as problem:  # noqa: BLE001 - `__exit__` raises it
            self._problem = problem

    def _look(self) -> None:
        api = self._cluster.api
        policies = api.call("GET", "/apis/networking.k8s.io/v1/networkpolicies")["items"]
        spaces = api.call("GET", "/api/v1/namespaces")["items"]
        labels = {space["metadata"]["name"]: space["metadata"].get("labels", {}) for space in spaces}
        pods = api.call("GET", "/api/v1/pods")["items"]
        for pod in pods:
            uid, rules = pod["metadata"]["uid"], build_rules(pod, policies, pods, labels)
            if rules != self.rules(uid):
                self._apply(uid, rules)

    def _apply(self, uid: str, rules: str) -> None:
        """Give a pod these rules. If the pod has not begun or just ends, the next reading tries again."""
        policy = "DROP" if rules else "ACCEPT"
        text = f"*filter\n:INPUT {policy} [0:0]\n{rules}COMMIT\n"
        if self._in_pod(uid, "iptables-restore", text=text).returncode == 0:
            self._rules = {**self._rules, uid: rules}

    def _in_pod(self, uid: str, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "--net", "--target", str(self._cluster.pause_pid(uid) or "none")]
        return subprocess.run([*enter, *command], input=text, capture_output=True, text=True)


def build_rules(
    pod: Mapping[str, Any],
    policies: list[dict[str, Any]],
    pods: list[dict[str, Any]],
    labels: Mapping[str, Mapping[str, str]],
) -> str:
    """Return the rules of a pod, empty if no policy selects it. `labels` are those of each namespace."""
    chosen = [
        policy["spec"]
        for policy in policies
        if _is_in(policy, pod) and _fits(policy["spec"]["podSelector"], pod)
    ]
    if not chosen:
        return ""
    lines = set()
    for rule in (rule for spec in chosen for rule in spec.get("ingress", ())):
        ports = [f" -p tcp --dport {port['port']}" for port in rule.get("ports", ())] or [""]
        for peer in pods:
            address = peer["status"].get("podIP")
            if address and any(_is_peer(each, peer, labels) for each in rule["from"]):
                lines |= {f"-A INPUT -s {address}{port} -j ACCEPT\n" for port in ports}
    return _HEAD.lstrip() + "".join(sorted(lines))


def _is_in(policy: Mapping[str, Any], pod: Mapping[str, Any]) -> bool:
    return bool(policy["metadata"]["namespace"] == pod["metadata"]["namespace"])


def _is_peer(
    peer: Mapping[str, Any], pod: Mapping[str, Any], labels: Mapping[str, Mapping[str, str]]
) -> bool:
    assert peer.keys() == {"namespaceSelector", "podSelector"}, peer
    space = {"metadata": {"labels": labels[pod["metadata"]["namespace"]]}}
    return _fits(peer["namespaceSelector"], space) and _fits(peer["podSelector"], pod)


def _fits(selector: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    assert selector.keys() <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= item["metadata"].get("labels", {}).items()
