"""Hostile texts in a request or in settings add no field to a pod. Wrong values are refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the package `kubernetes` is not installed: pip install '.[kubernetes]'")

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.kubernetes.names import USER_LABEL, name_pod, to_label
from roost.scheduler.backends.kubernetes.pod_spec import PodTemplate
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.errors import ConfigError

YAML = "x\nspec:\n  hostPID: true"
FLOW = "x, hostPath: {path: /}}"
SETTINGS = {
    "image": "lab:1",
    "namespace": "lab",
    "allowed_namespaces": ["lab-*"],
    "allowed_service_accounts": ["*"],
    "allowed_volumes": ["*"],
}


def build(request: Request | None = None, user: str = "ada", template: str = "", **settings: Any) -> Any:
    """Return the pod that roost builds for this user's request, from the pod template `template`."""
    found = PodTemplate(RoostKubernetesBackend(**{**SETTINGS, "pod_template": template, **settings}))
    request = request or Request()
    found.check(request)
    lease = Lease(id="k", kernel_id="k", owner=Owner(user=user), request=request, node_id="n1")
    return found.build_pod(lease, name_pod(user, "k", 1), "0" * 16, "public")


def outline(value: Any) -> Any:
    """Return the keys and lists of a pod, with each value replaced by the name of its type."""
    if isinstance(value, dict):
        return {key: outline(item) for key, item in value.items()}
    return [outline(item) for item in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize("hostile", [YAML, FLOW, "$(ROOST_POD_IP)", "{{ x }}", "a\0b", "$(id)", "é" * 300])
def test_a_hostile_text_stays_one_value(hostile: str) -> None:
    options = {"image": "i", "service_account": "s", "volumes": "v:/data"}
    hostile_options = {
        "image": hostile,
        "service_account": hostile,
        "volumes": f"v:/{hostile}".replace(",", ""),
    }
    if ":" in hostile_options["volumes"][2:]:
        hostile_options["volumes"] = "v:/data"  # the test below has these
    plain, pod = build(Request(options=options)), build(Request(options=hostile_options), user=hostile)
    assert outline(pod) == outline(plain)
    assert pod["spec"]["containers"][0]["image"] == hostile
    assert pod["spec"]["containers"][0]["command"] == plain["spec"]["containers"][0]["command"]
    assert json.loads(pod["metadata"]["annotations"]["roost/lease"])["owner"]["user"] == hostile


@pytest.mark.parametrize(
    "user", [YAML, FLOW, "", "-", "..", "ADA", "a/b", "é", "a" * 300, "ada@example.org", "a\0b"]
)
def test_each_user_has_a_valid_name_and_label(user: str) -> None:
    pod = build(user=user)
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert set(pod["metadata"]["name"]) <= allowed
    assert len(pod["metadata"]["name"]) <= 253
    label = pod["metadata"]["labels"][USER_LABEL]
    assert set(label) <= allowed
    assert 0 < len(label) <= 63
    assert label[0] != "-" != label[-1]
    assert user in ("", "ada") or to_label(user) != to_label(user + "x")


@pytest.mark.parametrize(
    "options",
    [
        {"namespace": "kube-system"},
        {"namespace": "lab-x/../kube-system"},  # `allowed_namespaces` are names, not patterns
        {"namespace": "lab-*/pods?x="},
        {"volumes": "data:/roost/start"},
        {"volumes": "data:/home/../roost"},
        {"volumes": "data:/"},
        {"volumes": "data:data"},
        {"volumes": "data:/a:rwx"},
        {"volumes": FLOW},
        {"volumes": ":/data"},
    ],
)
def test_options_that_are_not_allowed_are_refused_in_a_sentence(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        build(Request(options=options))
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", ["image", "service_account", "volumes", "namespace"])
def test_nothing_but_what_the_operator_allows_is_accepted(option: str) -> None:
    value = "v:/data" if option == "volumes" else "other"
    allowed = {
        f"allowed_{name}": ["lab*"] for name in ("images", "service_accounts", "volumes", "namespaces")
    }
    with pytest.raises(ConfigError, match=rf"^{option} = '.*' is not allowed here; the operator allows lab"):
        build(Request(options={option: value}), **allowed)


@pytest.mark.parametrize("resources", [{"nvidia.com/gpu": 1}, {"example.org/licence": 0.5}])
def test_amounts_that_kubernetes_does_not_count_are_refused(resources: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="Kubernetes gives no"):
        build(Request(resources=resources))


def test_a_template_cannot_change_what_roost_needs(tmp_path: Path) -> None:
    template = tmp_path / "pod.yaml"
    template.write_text("""
metadata: {name: mine, labels: {roost/user: bob, roost/lease: x, team: blue, value: v}, annotations: {value: v}}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 0
  schedulingGates: [{name: mine}]
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: In, values: [b]}]}]
  containers:
  - name: kernel
    restartPolicy: Always
    command: [sh]
    args: [-c, evil]
    env: [{name: ROOST_POD_IP, value: 1.2.3.4}, {name: MINE, value: "yes"}]
  - {name: sidecar, image: other}
""")
    plain, pod = build(), build(template=str(template))
    spec, kernel = pod["spec"], pod["spec"]["containers"][0]
    assert pod["metadata"]["name"] == plain["metadata"]["name"]
    assert pod["metadata"]["labels"] == {**plain["metadata"]["labels"], "team": "blue", "value": "v"}
    assert pod["metadata"]["annotations"] == {**plain["metadata"]["annotations"], "value": "v"}
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Never", 5)
    assert {"name": "roost/secret"} in spec["schedulingGates"]
    assert "restartPolicy" not in kernel
    assert (kernel["command"], kernel["args"]) == (plain["spec"]["containers"][0]["command"], [])
    variables = {variable["name"]: variable for variable in kernel["env"]}
    assert variables["ROOST_POD_IP"] == {
        "name": "ROOST_POD_IP",
        "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
    }
    assert variables["MINE"]["value"] == "yes"
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert [field["values"] for field in term["matchFields"]] == [["n1"]]
    assert term["matchExpressions"]


def test_the_template_of_one_pod_is_as_it_was_before_another(tmp_path: Path) -> None:
    template = tmp_path / "pod.yaml"
    template.write_text("spec: {affinity: {nodeAffinity: {}}}")
    found = PodTemplate(RoostKubernetesBackend(**SETTINGS, pod_template=str(template)))
    lease = Lease(id="k", kernel_id="k", owner=Owner(user="ada"), request=Request(), node_id="n1")
    assert found.build_pod(lease, "n", "s", "p") == found.build_pod(lease, "n", "s", "p")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "x",
        "",
        "kind: Deployment",
        "status: {}",
        "spec: []",
        "metadata: x",
        "metadata: {labels: x}",
        "metadata: {annotations: [x]}",
        "metadata: {finalizers: [x/y]}",
        "spec: {tolerations: x}",
        "spec: {containers: {name: kernel}}",
        "spec: {containers: [{image: x}]}",
        "spec: {containers: [x]}",
        "spec: {volumes: [{emptyDir: {}}]}",
        "spec: {volumes: [{name: roost-start, emptyDir: {}}]}",
        "spec: {containers: [{name: kernel, env: {A: b}}]}",
        "spec: {containers: [{name: kernel, volumeMounts: [{mountPath: /x}]}]}",
        "spec: {containers: [{name: kernel, volumeMounts: [{name: v, mountPath: /roost/start}]}]}",
        "spec: {containers: [{name: kernel, volumeMounts: [{name: v, mountPath: //roost/../roost}]}]}",
        "a: &a [*a",
        "!!python/object/apply:os.system [id]",
        "{",
        "\x00",
    ],
)
def test_a_wrong_template_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    template = tmp_path / "pod.yaml"
    template.write_text(text)
    with pytest.raises(ConfigError, match=r"^the pod template") as refused:
        PodTemplate(RoostKubernetesBackend(**SETTINGS, pod_template=str(template)))
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)
