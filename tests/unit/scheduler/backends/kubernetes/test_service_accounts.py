"""A pod has its service account's token only if the operator has listed the account for it. Spark's driver needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the package `kubernetes` is not installed: pip install '.[kubernetes]'")

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.kubernetes.pod_spec import PodTemplate
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.errors import ConfigError

ROOT = Path(__file__).parents[5]


def build(account: str, **settings: Any) -> Any:
    """Return the pod of a request with this service account."""
    template = PodTemplate(RoostKubernetesBackend(image="lab:1", **settings))
    request = Request(options={"service_account": account} if account else {})
    template.check(request)
    lease = Lease(id="k", kernel_id="k", owner=Owner(user="ada"), request=request, node_id="n1")
    return template.build_pod(lease, "name", "0" * 16, "public")


@pytest.mark.parametrize(
    ("account", "has_token"), [("spark", True), ("spark-2", True), ("plain", False), ("", False)]
)
def test_only_listed_accounts_bring_their_token(account: str, has_token: bool) -> None:
    settings = {"allowed_service_accounts": ["plain"], "token_service_accounts": ["spark", "spark-*"]}
    spec = build(account, **settings)["spec"]
    assert spec["automountServiceAccountToken"] is has_token
    assert spec.get("serviceAccountName", "") == account


def test_an_account_that_is_in_neither_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="the operator allows plain, spark"):
        build("admin", allowed_service_accounts=["plain"], token_service_accounts=["spark"])


def test_a_pod_has_the_variables_that_the_kernelspec_of_the_documentation_names() -> None:
    text = (ROOT / "docs/examples/spark/kubernetes/kernel.json").read_text()
    assert text in (ROOT / "docs/spark.md").read_text()
    fields = {each["name"]: each.get("valueFrom") for each in build("")["spec"]["containers"][0]["env"]}
    for name, path in (
        ("ROOST_POD_IP", "status.podIP"),
        ("ROOST_POD_NAME", "metadata.name"),
        ("ROOST_POD_NAMESPACE", "metadata.namespace"),
    ):
        assert fields[name] == {"fieldRef": {"fieldPath": path}}
        assert f"${{env:{name}}}" in json.loads(text)["env"]["PYSPARK_SUBMIT_ARGS"]
