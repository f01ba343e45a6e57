"""Users with the rights that roost's manifests give: roost works, and no user can touch another user's kernels."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.clusters.kubelets import Api, Kubelets, Refused
from kit.clusters.kubernetes.shared_cluster import cluster_settings
from kit.machine.tiny_kernel import TINY_KERNEL
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import Connection, Launch, Lease
from roost.launchers.protocol.rpc import Unauthorized
from roost.placement import Request
from roost.scheduler.backends import kubernetes
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.backends.kubernetes.backend import build_cluster, check, create
from roost.scheduler.backends.kubernetes.names import name_pod
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.errors import ConfigError, LaunchError
from roost.testing import BackendContract, backend_context, open_backend
from roost.testing.contract import OWNER
from roost.testing.deadlines import allow_s, until, until_blocking

MANIFESTS = Path(kubernetes.__file__).parent / "manifests"
SHARED = "shared"
PARTS = ("resize", "ephemeralcontainers", "eviction", "exec", "attach", "portforward", "proxy")
"""The subresources of a pod that RBAC allows `carol` to use."""
POLICY_S = 20.0
"""How long the API server may take to enforce a new policy."""
_GROUPS = {
    "ConfigMap": "/api/v1",
    "PriorityClass": "/apis/scheduling.k8s.io/v1",
    "NetworkPolicy": "/apis/networking.k8s.io/v1",
    **dict.fromkeys(
        ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
        "/apis/rbac.authorization.k8s.io/v1",
    ),
    **dict.fromkeys(
        ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
        "/apis/admissionregistration.k8s.io/v1",
    ),
}
_NAMESPACED = ("ConfigMap", "NetworkPolicy", "Role", "RoleBinding")
STEPS = BackendContract()

Open = Callable[[str, str], Any]


def write(api: Api, file: str, namespace: str, user: str = "") -> None:
    """Create a manifest's objects in this namespace, for `user` or (if empty) the manifest's group."""
    text = (MANIFESTS / file).read_text().replace("kernels  # CHANGE", f"{namespace}  # CHANGE")
    for found in yaml.safe_load_all(text):
        if user and "subjects" in found:
            found["subjects"] = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]
        plural = re.sub("y$", "ie", re.sub("ss$", "sse", found["kind"].lower())) + "s"
        place = f"/namespaces/{namespace}" if found["kind"] in _NAMESPACED else ""
        with suppress_existing():
            api.call("POST", f"{_GROUPS[found['kind']]}{place}/{plural}", found)


class suppress_existing(suppress):  # noqa: N801 - named as `suppress` is
    """Suppress the API server's refusal to create an object that exists already."""

    def __init__(self) -> None:
        super().__init__(Refused)

    def __exit__(self, kind: Any, problem: Any, trace: Any) -> bool:
        return isinstance(problem, Refused) and problem.status == 409


@pytest.fixture(scope="module")
def users(kubernetes_cluster: Kubelets) -> Iterator[dict[str, Api]]:
    """Return the API as each user sees it. `alice` and `bob` have the manifests' rights; `carol` may do more to pods.

    `alice` and `bob` have a namespace each. All three share `SHARED`, where users may touch only their own pods.
    """
    admin = kubernetes_cluster.api
    names = ("alice", "bob", "carol")
    found = {name: Api(kubernetes_cluster.write_kubeconfig(name, ["roost-users"])) for name in names}
    for namespace, user in (("alice", "alice"), ("bob", "bob"), (SHARED, "")):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        admin.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": labels}})
        write(admin, "role.yaml", namespace, user)
    for file in ("nodes.yaml", "priority-class.yaml", "network-policy.yaml", "report-policy.yaml"):
        write(admin, file, SHARED)
    for file in ("own-pods/rules.yaml", "own-pods/policy.yaml"):
        write(admin, file, SHARED)
    rbac = f"{_GROUPS['Role']}/namespaces/{SHARED}"
    rule = {"apiGroups": [""], "resources": ["pods", *(f"pods/{part}" for part in PARTS)], "verbs": ["*"]}
    admin.call("POST", f"{rbac}/roles", {"metadata": {"name": "more"}, "rules": [rule]})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "more"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "carol"}
    admin.call(
        "POST", f"{rbac}/rolebindings",
        {"metadata": {"name": "more"}, "roleRef": reference, "subjects": [subject]},
    )  # fmt: skip

    def is_enforced() -> bool:  # before that, Kubernetes may refuse it for another reason
        return "created-by" in attempt(found["bob"], "POST", pods(SHARED), pod("bob", created_by="alice"))

    def have_accounts() -> bool:
        paths = (f"/api/v1/namespaces/{name}/serviceaccounts/default" for name in ("alice", "bob"))
        return all(map(admin.has, paths))

    until_blocking(
        lambda: is_enforced() and have_accounts(), "the policy and the accounts are there", POLICY_S, 0.2
    )
    yield found
    for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
        admin.call("DELETE", f"{_GROUPS['ValidatingAdmissionPolicy']}/{kind}/roost-own-pods")
    for kind in ("clusterrolebindings", "clusterroles"):
        admin.call("DELETE", f"{_GROUPS['ClusterRole']}/{kind}/roost-nodes")
    admin.call("DELETE", f"{_GROUPS['PriorityClass']}/priorityclasses/roost-kernels")
    for namespace in ("alice", "bob", SHARED):
        admin.call("DELETE", f"/api/v1/namespaces/{namespace}")


@pytest.fixture
def settings_of(
    users: dict[str, Api], kubernetes_cluster: Kubelets, module_runtime_dir: Path
) -> Callable[..., RoostKubernetesBackend]:
    """Return a function that builds the settings of a user's service."""

    def build(user: str, namespace: str, **more: Any) -> RoostKubernetesBackend:
        folder = module_runtime_dir / f"{user}-{namespace}"
        folder.mkdir(mode=0o700, exist_ok=True)
        settings = {
            **cluster_settings(kubernetes_cluster, folder),
            "address": str(kubernetes_cluster.folder / f"{user}.kubeconfig"),
            "namespace": namespace,
            "priority_class": "roost-kernels",
            "read_all_pods": False,
        }
        return RoostKubernetesBackend(**{**settings, **more})

    return build


@asynccontextmanager
async def service(settings: RoostKubernetesBackend, folder: Path) -> AsyncIterator[tuple[Backend, Agents]]:
    """Open a user's backend as a service does. Yield it with its clients of agents."""
    async with open_backend(lambda agents: create(settings, backend_context(agents, folder))) as opened:
        yield opened


async def start(backend: Backend, agents: Agents, kernel_id: str) -> tuple[Lease, AgentClient]:
    """Start a tiny kernel in a lease of its own, and return the lease and the client of its agent."""
    lease = await STEPS.take(backend, kernel_id, Request(cpus=0.1))
    client = await agents.client(await backend.agent(lease))
    launch = Launch(
        launch_id=uuid.uuid4().hex,
        lease_id=lease.id,
        kernel_id=kernel_id,
        argv=("python3", "-S", "-c", TINY_KERNEL, "{connection_file}"),
        env={"WORD": "alices-own"},
        cwd="/tmp",
        connection=Connection(key="k"),
    )
    assert (await client.launch(launch)).pid
    return lease, client


def pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def pod(user: str, *, created_by: str = "", name: str = "", secret: str = "", **spec: Any) -> dict[str, Any]:
    """Return the description of a pod that this user may create, with the given changes."""
    name = name or f"roost-{user}-{uuid.uuid4().hex[:20]}"
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 12345,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": "roost-test:1", "securityContext": security, **spec.pop("main", {})}
    if secret:
        spec["volumes"] = [{"name": "s", "secret": {"secretName": secret}}]
    return {
        "metadata": {"name": name, "annotations": {"roost/created-by": created_by or user}},
        "spec": {"containers": [container], **spec},
    }


def attempt(api: Api, method: str, path: str, body: Any = None) -> str:
    """Send a request as a dry run. Return the API server's refusal, or an empty text if it accepts the request."""
    try:
        api.text(method, path if method == "GET" else f"{path}?dryRun=All", body)
    except Refused as refused:
        try:
            return f"{refused.status} {json.loads(str(refused).partition(': ')[2])['message']}"
        except ValueError:
            return str(refused)
    return ""


async def find_pod(api: Api, namespace: str, lease: Lease) -> dict[str, Any]:
    """Return the only pod of roost in a namespace. It must be the pod of this lease."""
    (found,) = api.call("GET", f"{pods(namespace)}?labelSelector=app.kubernetes.io/managed-by=roost")["items"]
    assert lease.id in found["metadata"]["annotations"]["roost/lease"]
    return dict(found)


def secrets_of(api: Api, namespace: str) -> list[str]:
    items = api.call("GET", f"/api/v1/namespaces/{namespace}/secrets")["items"]
    return [item["metadata"]["name"] for item in items]


async def test_a_kernel_runs_with_the_rights_of_the_manifests(
    users: dict[str, Api],
    kubernetes_cluster: Kubelets,
    settings_of: Callable[..., RoostKubernetesBackend],
    tmp_path: Path,
) -> None:
    """A user with another namespace can neither see nor change anything of this kernel."""
    async with service(settings_of("alice", "alice"), tmp_path) as (backend, agents):
        lease, client = await start(backend, agents, "k")
        found = await find_pod(kubernetes_cluster.api, "alice", lease)
        assert found["metadata"]["annotations"]["roost/created-by"] == "alice"
        assert found["spec"]["preemptionPolicy"] == "Never"
        name, bob = found["metadata"]["name"], users["bob"]
        path = f"{pods('alice')}/{name}"
        attempts = [
            ("GET", pods("alice")), ("GET", path), ("GET", f"{path}/log"), ("GET", f"{path}/exec?command=id"),
            ("GET", f"{path}/portforward"), ("GET", f"/api/v1/namespaces/alice/secrets/{name}"),
            ("GET", "/api/v1/namespaces/alice/events"), ("PATCH", path), ("PATCH", f"{path}/resize"),
            ("DELETE", path), ("POST", pods("alice")),
        ]  # fmt: skip
        for method, where in attempts:
            body = pod("bob", secret=name) if method == "POST" else {}
            assert attempt(bob, method, where, body).startswith("403 "), (method, where)
        assert [one.kernel_id for one in (await client.holdings()).kernels] == ["k"]
        await backend.release(lease)
        api = kubernetes_cluster.api
        await until(lambda: name not in secrets_of(api, "alice"), "the Secret ends with its pod", 60, 0.2)


async def test_users_of_one_namespace_cannot_touch_each_others_pods(
    users: dict[str, Api],
    kubernetes_cluster: Kubelets,
    settings_of: Callable[..., RoostKubernetesBackend],
    tmp_path: Path,
) -> None:
    async with (
        service(settings_of("alice", SHARED), tmp_path) as (backend, agents),
        service(settings_of("bob", SHARED), tmp_path) as (bobs, bobs_agents),
    ):
        lease, client = await start(backend, agents, "k")
        found = await find_pod(kubernetes_cluster.api, SHARED, lease)
        name, path = found["metadata"]["name"], f"{pods(SHARED)}/{found['metadata']['name']}"
        more_cpu = {"spec": {"containers": [{"name": "kernel", "resources": {"requests": {"cpu": "2"}}}]}}
        mine_now = {"metadata": {"annotations": {"roost/created-by": "carol"}}}
        container = {**pod("carol")["spec"]["containers"][0], "name": "debugger"}
        debugger = {"spec": {"ephemeralContainers": [container]}}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        for user in ("bob", "carol"):
            secret = f"/api/v1/namespaces/{SHARED}/secrets"
            assert attempt(users[user], "GET", f"{secret}/{name}").startswith("403 ")
            assert attempt(users[user], "GET", secret).startswith("403 ")
            for method, part, body in (
                ("PATCH", "", {"metadata": {"labels": {"x": "y"}}}),
                ("PATCH", "", mine_now),
                ("DELETE", "", None),
                ("PATCH", "/resize", more_cpu),
                ("PATCH", "/ephemeralcontainers", debugger),
                ("POST", "/eviction", eviction),
                ("GET", "/exec?command=id", None),
                ("GET", "/attach", None),
                ("GET", "/portforward?ports=8870", None),
                ("GET", "/proxy", None),
            ):
                refusal = attempt(users[user], method, path + part, body)
                assert refusal[:4] in ("403 ", "422 "), (user, method, part, refusal)
                assert user != "carol" or "ValidatingAdmissionPolicy" in refusal, (method, part, refusal)

        # A pod of one's own reaches no Secret of another user, in none of these ways.
        reference = {"secretKeyRef": {"name": name, "key": "assignment.json"}}
        theirs = {"secret": {"name": name}}
        cases = {
            "a volume": [
                pod("bob", secret=name),
                pod("bob", volumes=[{"name": "s", "projected": {"sources": [theirs]}}]),
                pod("bob", volumes=[{"name": "s", "hostPath": {"path": "/var/lib/kubelet"}}]),
                pod("bob", volumes=[{"name": "s", "persistentVolumeClaim": {"claimName": "claim-alice"}}]),
            ],
            "a variable": [
                pod("bob", main={"env": [{"name": "S", "valueFrom": reference}]}),
                pod("bob", main={"envFrom": [{"secretRef": {"name": name}}]}),
            ],
            "image pull secret": [pod("bob", imagePullSecrets=[{"name": name}])],
            "the name must be": [
                pod("bob", name=f"roost-alice-{uuid.uuid4().hex[:20]}"),
                pod("bob", name="roost-bob-x"),
                pod("bob", name=f"roost-bob-lovelace-{uuid.uuid4().hex[:20]}"),
            ],
            "created-by": [pod("bob", created_by="alice")],
        }
        for message, bodies in cases.items():
            for body in bodies:
                refusal = attempt(users["bob"], "POST", pods(SHARED), body)
                assert message in refusal or "PodSecurity" in refusal, (message, refusal)
        own = pod("bob", volumes=[{"name": "s", "persistentVolumeClaim": {"claimName": "claim-bob"}}])
        assert attempt(users["bob"], "POST", pods(SHARED), own) == ""
        secret = {"metadata": {"name": f"roost-alice-{'0' * 20}"}}
        assert "the name must be" in attempt(
            users["bob"], "POST", f"/api/v1/namespaces/{SHARED}/secrets", secret
        )

        # A pod with copied labels and annotations is not taken for a pod of the first user's service.
        copy = pod("bob")
        copy["metadata"]["labels"] = found["metadata"]["labels"]
        copy["metadata"]["annotations"] = {
            **found["metadata"]["annotations"],
            "roost/created-by": "bob",
            "roost/agent-key": load_key_pair(str(tmp_path / "bobs.json"), name="", section="").public,
        }
        users["bob"].call("POST", pods(SHARED), copy)
        assert [one.id for one in (await backend.leases()).leases] == [lease.id]
        assert await agents.client(await backend.agent(lease)) is client
        users["bob"].call("DELETE", f"{pods(SHARED)}/{copy['metadata']['name']}", {"gracePeriodSeconds": 1})

        # The second user's service works beside, does not see the first one's kernels, and has no key to their agents.
        assert (await bobs.leases()).leases == ()
        second, _ = await start(bobs, bobs_agents, "b")
        address, mine = await backend.agent(lease), await bobs.agent(second)
        stranger = AgentClient(address.endpoint, replace(mine.keys, server=address.keys.server))
        with pytest.raises(Unauthorized):
            await asyncio.wait_for(stranger.connect(), allow_s(60))
        await stranger.close()
        await bobs.release(second)
        assert [one.kernel_id for one in (await client.holdings()).kernels] == ["k"]
        await backend.release(lease)


@pytest.mark.parametrize(
    "user", ["system:serviceaccount:hub:jupyter-dora", "oidc:Dora.D@example.org", "d_o+ra"]
)
def test_the_policy_computes_the_names_of_pods_as_roost_does(
    users: dict[str, Api], kubernetes_cluster: Kubelets, user: str
) -> None:
    api = Api(kubernetes_cluster.write_kubeconfig(user, ["roost-users"]))
    for number in (1, 2, 20):
        own = pod("", created_by=user, name=name_pod(user, "k", number))
        assert attempt(api, "POST", pods(SHARED), own) == ""
    for name in (name_pod("alice", "k", 1), name_pod(user + "-x", "k", 1), f"roost-{user[-4:]}-{'0' * 20}x"):
        assert attempt(api, "POST", pods(SHARED), pod("", created_by=user, name=name.lower()))


TEMPLATES = {
    "spec: {nodeName: n1}": "schedulingGates",
    "spec: {containers: [{name: kernel, image: ''}, {name: kernel2}]}": "image",
    "spec: {containers: [{name: 'a b', image: x}]}": "a b",
    "spec: {colour: green}": "colour",
    "spec: {hostNetwork: true}": "hostNetwork",
    "spec: {containers: [{name: kernel, securityContext: {privileged: true}}]}": "privileged",
    "spec: {volumes: [{name: roost-scratch, hostPath: {path: /}}]}": "roost-scratch",
    "spec: {volumes: [{name: v, hostPath: {path: /}}]}": "hostPath",
    "spec: {affinity: green}": "affinity",
    "spec: {containers: [{name: kernel, volumeMounts: [{name: nothing, mountPath: /x}]}]}": "nothing",
    "metadata: {labels: {x: 'a b'}}": "a b",
    "metadata: {namespace: kube-system}": "namespace",
    "spec: {priorityClassName: none}": "PriorityClass",
}
"""Pod templates that the API server refuses, with a word from each refusal."""


async def test_a_template_that_the_api_server_refuses_is_reported_at_the_start(
    settings_of: Callable[..., RoostKubernetesBackend], tmp_path: Path
) -> None:
    template = tmp_path / "pod.yaml"
    for text, word in TEMPLATES.items():
        template.write_text(text)
        changes = {"priority_class": ""} if "priorityClassName" in text else {}
        cluster = build_cluster(settings_of("alice", "alice", pod_template=str(template), **changes))
        message = "accepted"
        try:
            await asyncio.wait_for(cluster.join(), allow_s(60))
        except ConfigError as refused:
            message = str(refused)
        finally:
            await asyncio.wait_for(cluster.close(), allow_s(60))
        assert word in message, (text, message)
        assert "\n" not in message
        assert message.endswith(".")
        settings = settings_of("alice", "alice", pod_template=str(template), **changes)
        with pytest.raises(ConfigError, match=word):
            await asyncio.to_thread(check, settings, Request(cpus=0.1))


async def test_an_accepted_template_is_checked_without_a_pod(
    kubernetes_cluster: Kubelets, settings_of: Callable[..., RoostKubernetesBackend]
) -> None:
    before = kubernetes_cluster.api.call("GET", "/api/v1/pods")["items"]
    await asyncio.to_thread(check, settings_of("alice", "alice"), Request(cpus=0.1))
    request = Request(cpus=0.1, options={"volumes": "data:/data"})
    with pytest.raises(ConfigError, match="'data' is not allowed"):
        await asyncio.to_thread(check, settings_of("alice", "alice"), request)
    assert len(kubernetes_cluster.api.call("GET", "/api/v1/pods")["items"]) <= len(before)


async def test_the_api_server_refuses_hostile_values_in_one_sentence(
    settings_of: Callable[..., RoostKubernetesBackend],
) -> None:
    settings = settings_of("alice", "alice", allowed_service_accounts=["*"], allowed_volumes=["*"])
    cluster = build_cluster(settings)
    await cluster.join()
    try:
        for options in (
            {"image": " roost-test:1\nspec: {hostPID: true}"},
            {"service_account": "default\nautomountServiceAccountToken: true"},
            {"volumes": "a}hostPath{:/data"},
            {"volumes": "../../etc:/data"},
        ):
            asked = Request(options=options)
            cluster.check_request(asked)
            lease = Lease(id="k", kernel_id="k", owner=OWNER, request=asked, node_id="n1")
            with pytest.raises(LaunchError) as refused:
                await asyncio.wait_for(cluster.create(lease), allow_s(60))
            message = str(refused.value)
            assert message.startswith("Kubernetes "), message
            assert message.endswith(".")
            assert "\n" not in message
        assert not await cluster.pods()
    finally:
        await asyncio.wait_for(cluster.close(), allow_s(60))


async def test_no_pod_of_a_user_takes_over_its_node(
    users: dict[str, Api], kubernetes_cluster: Kubelets
) -> None:
    """The policy refuses this by itself, in a namespace without Pod Security."""
    admin, namespace = kubernetes_cluster.api, f"/api/v1/namespaces/{SHARED}"
    level = "pod-security.kubernetes.io/enforce"
    cases = {
        "a pod has its own network, processes and shared memory": [
            pod("bob", **{field: True}) for field in ("hostPID", "hostIPC", "hostNetwork")
        ],
        "no container is privileged": [
            pod("bob", main={"securityContext": {"privileged": True}}),
            pod("bob", initContainers=[{"name": "i", "image": "a", "securityContext": {"privileged": True}}]),
        ],
        "a volume is of a kind": [pod("bob", volumes=[{"name": "s", "hostPath": {"path": "/"}}])],
    }
    admin.call("PATCH", namespace, {"metadata": {"labels": {level: "privileged"}}})
    try:

        def is_off() -> bool:
            return "PodSecurity" not in attempt(admin, "POST", pods(SHARED), pod("bob", hostPID=True))

        await until(is_off, "Pod Security is no longer enforced", POLICY_S, 0.2)
        for message, bodies in cases.items():
            for body in bodies:
                assert message in attempt(users["bob"], "POST", pods(SHARED), body)
        assert attempt(users["bob"], "POST", pods(SHARED), pod("bob")) == ""
        assert attempt(users["bob"], "POST", pods(SHARED), pod("bob", hostPID=False)) == ""
    finally:
        admin.call("PATCH", namespace, {"metadata": {"labels": {level: "restricted"}}})
