"""Kernels on a YARN cluster with Kerberos: tickets (SPNEGO) for the REST interface, tokens for everything else.

These tests need Debian's krb5-kdc, krb5-admin-server and krb5-user, and the Python package requests-gssapi (which needs
libkrb5-dev and a C compiler). They take a minute.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.clusters import hadoop_nodes
from kit.clusters.yarn import kerberos
from kit.clusters.yarn.kerberos import Realm, SecureNodes, secure_cluster
from kit.clusters.yarn.shared_cluster import assert_nothing_left, cluster_settings
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import settle
from roost.scheduler.client.client import connect, disconnect
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import until

USER = "ada"
AWAY_S = 30.0
"""How long the service may take to notice that the user's Kerberos ticket is gone, or back."""
REASON = hadoop_nodes.why_not() or kerberos.why_not()

pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.long,
]


@pytest.fixture(scope="module")
def secure_nodes(private_environment: None) -> Iterator[tuple[SecureNodes, Realm]]:
    with secure_cluster(USER) as both:
        yield both


@pytest.fixture
def notebook(
    secure_nodes: tuple[SecureNodes, Realm],
    runtime_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Notebook]:
    """Return a notebook on the secure cluster, with a service of its own."""
    cluster, realm = secure_nodes
    realm.log_in(USER)
    tmp_path.chmod(0o700)
    settings = {
        **cluster_settings(cluster, tmp_path),
        "authentication": getattr(request, "param", "kerberos"),
    }
    config = {"RoostYarnBackend": settings, "RoostScheduler": {"idle_exit_s": 3}}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps(config))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    notebook = Notebook("roosted")
    notebook.manager.kernel_spec_manager = kernelspecs(tmp_path, backend="yarn")
    yield notebook
    disconnect()
    settle(runtime_dir)
    realm.log_in(USER)
    assert_nothing_left(cluster, within_s=30)


async def test_a_kernel_of_the_user_of_the_ticket(
    secure_nodes: tuple[SecureNodes, Realm], notebook: Notebook
) -> None:
    cluster, _ = secure_nodes
    await notebook.open()
    assert await notebook.value("6 * 7") == "42"
    (application,) = cluster.applications()
    assert application["user"] == USER
    await notebook.close()


async def test_a_kernel_outlives_its_owners_ticket(
    secure_nodes: tuple[SecureNodes, Realm], notebook: Notebook
) -> None:
    """Without a Kerberos ticket the service cannot read the cluster, but the kernel runs. A new ticket repairs that."""
    _, realm = secure_nodes
    await notebook.open()
    realm.log_out()
    await until_problem(lambda problem: "kinit" in problem)
    assert await notebook.value("6 * 7") == "42"
    realm.log_in(USER)
    await until_problem(lambda problem: not problem)
    second = Notebook("roosted")
    second.manager.kernel_spec_manager = notebook.manager.kernel_spec_manager
    await second.open()
    await second.close()
    assert await notebook.value("6 * 7") == "42"
    await notebook.close()


async def until_problem(is_right: Callable[[str], bool]) -> None:
    """Wait until `is_right` is true of `read_problem()`, the service's problem with its cluster (empty: no problem)."""
    problem = ""

    async def look() -> bool:
        nonlocal problem
        problem = await read_problem()
        return is_right(problem)

    await until(look, lambda: f"the problem changes: {problem!r}", AWAY_S, 0.5)


async def read_problem() -> str:
    """Return the reason why the service cannot read its cluster; empty if it can."""
    try:
        await connect("yarn").nodes()
    except RoostError as problem:
        return str(problem)
    return ""


async def test_without_a_ticket_no_kernel_starts_until_there_is_one(
    secure_nodes: tuple[SecureNodes, Realm], notebook: Notebook
) -> None:
    _, realm = secure_nodes
    realm.log_out()
    with pytest.raises(RoostError, match="kinit"):
        await notebook.open()
    realm.log_in(USER)
    await notebook.open()
    assert await notebook.value("6 * 7") == "42"
    await notebook.close()


@pytest.mark.parametrize("notebook", ["simple"], indirect=True)
async def test_a_name_alone_is_refused(notebook: Notebook) -> None:
    with pytest.raises(
        RoostError, match=r"set c\.RoostYarnBackend\.authentication, and with kerberos run kinit"
    ):
        await notebook.open()
