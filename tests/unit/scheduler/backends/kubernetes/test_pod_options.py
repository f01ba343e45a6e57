"""Volumes, user, group and node of a pod, as users of Enterprise Gateway ask for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the package `kubernetes` is not installed: pip install '.[kubernetes]'")

from traitlets import TraitError

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.provisioners.request_options import read_start_options
from roost.scheduler.backends.kubernetes.pod_spec import PodTemplate
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.errors import ConfigError

CLAIM = {"name": "d", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}
NFS = {"name": "n", "nfs": {"server": "files", "path": "/home/ada"}}
MOUNTS = [{"name": "d", "mountPath": "/data", "subPath": "ada"}, {"name": "d", "mountPath": "/again"}]


def build(env: dict[str, str], template: str = "", **settings: Any) -> dict[str, Any]:
    """Return the spec of the pod that roost builds for a kernel with these variables."""
    values = {"image": "lab:1", "pod_template": template, **settings}
    found = PodTemplate(RoostKubernetesBackend(**values))
    request = read_start_options({"backend": "kubernetes"}, env).request
    found.check(request)
    lease = Lease(id="k", kernel_id="k", owner=Owner(user="ada"), request=request, node_id="n1")
    return found.build_pod(lease, "pod", "0" * 16, "public")["spec"]  # type: ignore[no-any-return]


def ask(volumes: object, mounts: object = (), **settings: Any) -> tuple[list[Any], list[Any]]:
    """Return the volumes and mounts of a pod that are not roost's own."""
    env = {"KERNEL_VOLUMES": volumes if isinstance(volumes, str) else json.dumps(volumes)}
    if mounts:
        env["KERNEL_VOLUME_MOUNTS"] = mounts if isinstance(mounts, str) else json.dumps(mounts)
    spec = build(env, **settings)
    volumes = [each for each in spec["volumes"] if each["name"].startswith("roost-volume-")]
    mounted = spec["containers"][0]["volumeMounts"]
    return volumes, [each for each in mounted if each["name"].startswith("roost-volume-")]


def test_claims_in_short() -> None:
    volumes, mounts = ask("data:/data, models:/models:ro", allowed_volumes=["*"])
    assert [each["persistentVolumeClaim"] for each in volumes] == [
        {"claimName": "data"},
        {"claimName": "models"},
    ]
    assert mounts == [
        {"name": "roost-volume-0", "mountPath": "/data", "readOnly": False},
        {"name": "roost-volume-1", "mountPath": "/models", "readOnly": True},
    ]


@pytest.mark.parametrize(
    ("volumes", "mounts"),
    [
        ([CLAIM], MOUNTS),
        (
            "[{name: 'd', persistentVolumeClaim: {claimName: 'data', readOnly: true}}]",
            "[{name: 'd', mountPath: '/data', subPath: 'ada'}, {name: 'd', mountPath: '/again'}]",
        ),
        (
            "- name: d\n  persistentVolumeClaim:\n    claimName: data\n    readOnly: true\n",
            "- {name: d, mountPath: /data, subPath: ada}\n- {name: d, mountPath: /again}",
        ),
    ],
)
def test_json_and_yaml_say_the_same(volumes: object, mounts: object) -> None:
    found, mounted = ask(volumes, mounts, allowed_volumes=["data"])
    assert found == [{"name": "roost-volume-0", "persistentVolumeClaim": CLAIM["persistentVolumeClaim"]}]
    assert mounted == [
        {"name": "roost-volume-0", "mountPath": "/data", "subPath": "ada"},
        {"name": "roost-volume-0", "mountPath": "/again"},
    ]


def test_a_volume_never_changes_one_of_the_template() -> None:
    home = {"name": "roost-scratch", "emptyDir": {"medium": "Memory"}}
    spec = build(
        {
            "KERNEL_VOLUMES": json.dumps([home]),
            "KERNEL_VOLUME_MOUNTS": json.dumps([{"name": "roost-scratch", "mountPath": "/fast"}]),
        }
    )
    by_name = {each["name"]: each for each in spec["volumes"]}
    assert by_name["roost-scratch"] == {"name": "roost-scratch", "emptyDir": {}}
    assert by_name["roost-volume-0"]["emptyDir"] == {"medium": "Memory"}


@pytest.mark.parametrize(
    ("volume", "allowed", "refused_by"),
    [
        (CLAIM, ["data"], ["other", "nfs:*", "persistentVolumeClaim"]),
        (NFS, ["nfs:files:/home/*"], ["*", "nfs:other:*", "files:/home/ada", "hostPath:*"]),
        (
            {"name": "h", "hostPath": {"path": "/data"}},
            ["hostPath:/data"],
            ["*", "/data", "hostPath:/data/*"],
        ),
        (
            {"name": "s", "secret": {"secretName": "token"}},
            ["secret:token"],
            ["*", "token", "configMap:token"],
        ),
        ({"name": "c", "configMap": {"name": "conf"}}, ["configMap:c*"], ["*", "conf", "secret:conf"]),
    ],
)
def test_the_operator_allows_each_kind_apart(
    volume: dict[str, Any], allowed: list[str], refused_by: list[str]
) -> None:
    mounts = [{"name": volume["name"], "mountPath": "/there"}]
    assert len(ask([volume], mounts, allowed_volumes=[*refused_by, *allowed])[0]) == 1
    for patterns in (refused_by, []):
        with pytest.raises(ConfigError, match=r"^volumes = '.*' is not allowed here; the operator allows"):
            ask([volume], mounts, allowed_volumes=patterns)


@pytest.mark.parametrize("path", ["/data/../etc", "/data//x", "//data", "/data/", "/data/./x", "data", ""])
def test_a_path_that_means_another_one_is_refused(path: str) -> None:
    for source in ({"hostPath": {"path": path}}, {"nfs": {"server": "files", "path": path}}):
        with pytest.raises(ConfigError, match=r"path"):
            ask(
                [{"name": "h", **source}],
                [{"name": "h", "mountPath": "/m"}],
                allowed_volumes=["hostPath:*", "nfs:*"],
            )


@pytest.mark.parametrize(
    ("volumes", "mounts", "said"),
    [
        ([CLAIM], [], "the volume 'd' is mounted nowhere"),
        ([CLAIM, NFS], MOUNTS, "the volume 'n' is mounted nowhere"),
        ([CLAIM, CLAIM], MOUNTS, "two volumes of one name"),
        ([CLAIM], [{"name": "x", "mountPath": "/x"}], "volume_mounts names the volume 'x'"),
        ([CLAIM], [{"name": "d"}], "must have a mountPath that begins with /"),
        ([CLAIM], [{"name": "d", "mountPath": "data"}], "must have a mountPath that begins with /"),
        ([CLAIM], [{"name": "d", "mountPath": "/roost/start"}], "must not mount anything at /roost/start"),
        ([CLAIM], [{"name": "d", "mountPath": "/a/.."}], "must not mount anything at /:"),
        ([CLAIM], [{"name": "d", "mountPath": "/a", "mountPropagation": "x"}], "no 'mountPropagation'"),
        ([CLAIM], "{name: d}", "volume_mounts = '{name: d}' must be a list"),
        ("{name: d}", MOUNTS, "volumes = '{name: d}' must be a list"),
        ("[d]", MOUNTS, "must be a list such as"),
        ("[{name: ''}]", MOUNTS, "must be a list such as"),
        ("[{name: d", MOUNTS, "volumes is not YAML"),
        ("[" * 500, MOUNTS, "volumes "),
        ([{"name": "d"}], MOUNTS, "must have one kind with its fields"),
        ([{**CLAIM, "emptyDir": {}}], MOUNTS, "must have one kind with its fields"),
        ([{"name": "d", "emptyDir": None}], MOUNTS, "must have one kind with its fields"),
        ([{"name": "d", "csi": {"driver": "x"}}], MOUNTS, "of the kind 'csi': kernels may ask for"),
        ([{"name": "d", "projected": {"sources": []}}], MOUNTS, "of the kind 'projected'"),
        ([{"name": "d", "secret": {}}], MOUNTS, "lacks secretName"),
        ([{"name": "d", "nfs": {"path": "/x", "server": 3}}], MOUNTS, "lacks server"),
        ("data:/data", MOUNTS, "volume_mounts needs volumes that are a list"),
        ("", MOUNTS, "volume_mounts needs volumes that are a list"),
        ("data", [], "must be claims with paths"),
    ],
)
def test_what_cannot_be_mounted_is_one_sentence(volumes: object, mounts: object, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ask(volumes, mounts, allowed_volumes=["*", "secret:*", "nfs:*"])
    assert said in str(refused.value)
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def test_a_kernel_can_name_its_user_and_group() -> None:
    context = build({"KERNEL_UID": "1234", "KERNEL_GID": "100"})["containers"][0]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (1234, 100, True)
    assert context["allowPrivilegeEscalation"] is False
    plain = build({})["containers"][0]["securityContext"]
    assert not {"runAsUser", "runAsGroup", "runAsNonRoot"} & plain.keys()


@pytest.mark.parametrize(
    ("variable", "value", "allowed", "said"),
    [
        ("KERNEL_UID", "0", None, "uid = 0 is not allowed here; the operator allows 1-2147483647"),
        ("KERNEL_GID", "0", None, "gid = 0 is not allowed here"),
        ("KERNEL_UID", "-1", None, "uid = -1 is not allowed here"),
        ("KERNEL_UID", "4294967296", None, "uid = 4294967296 is not allowed here"),
        ("KERNEL_UID", "1500", ["1000", "2000-3000"], "the operator allows 1000, 2000-3000"),
        ("KERNEL_GID", "1", [], "the operator allows none"),
        ("KERNEL_UID", "root", None, "uid = 'root' must be a whole number"),
        ("KERNEL_UID", "1.5", None, "uid = 1.5 must be a whole number"),
        ("KERNEL_UID", "true", None, "uid = True must be a whole number"),
    ],
)
def test_a_user_or_group_that_is_not_allowed(
    variable: str, value: str, allowed: list[str] | None, said: str
) -> None:
    name = f"allowed_{variable[7:].lower()}s"
    with pytest.raises(ConfigError, match=said):
        build({variable: value}, **({} if allowed is None else {name: allowed}))


def test_root_runs_only_if_the_operator_allows_it() -> None:
    context = build({"KERNEL_UID": "0", "KERNEL_GID": "0"}, allowed_uids=["0"], allowed_gids=["0"])
    context = context["containers"][0]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["runAsNonRoot"]) == (0, 0, False)


@pytest.mark.parametrize("text", ["", "all", "1-", "-1", "1-2-3", "*"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    for name in ("allowed_uids", "allowed_gids"):
        with pytest.raises(TraitError, match=f"{name}: .* is no range of numbers"):
            RoostKubernetesBackend(**{name: [text]})


def test_a_pod_that_waits_for_a_new_node_keeps_to_the_node_that_the_kernel_names() -> None:
    template = PodTemplate(RoostKubernetesBackend(image="lab:1"))
    request = read_start_options({"backend": "kubernetes"}, {"KERNEL_REMOTE_HOST": "n7"}).request
    lease = Lease(id="k", kernel_id="k", owner=Owner(user="ada"), request=request, node_id="")
    affinity = template.build_pod(lease, "pod", "0" * 16, "public")["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["n7"]}]


def test_the_request_keeps_the_texts_as_they_are() -> None:
    """The lease travels with the request, and another service reads it again."""
    options = {"volumes": json.dumps([CLAIM]), "volume_mounts": json.dumps(MOUNTS), "uid": 7}
    request = Request(options=options)
    assert Request.from_dict(request.to_dict()) == request
