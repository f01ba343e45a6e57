"""A plain and a TLS Dask cluster for the whole run, each started by the first test that asks for it.

All tests share the machines and leave them as they found them. A test that kills something starts its own cluster.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roost.testing.clusters.dask_machines import DaskMachines, Machine, why_not
from roost.testing.leftovers import VARIABLE, end

MACHINES = (
    Machine(cpus=4, gpus=2, resources={"T4": 2}),
    Machine(cpus=2, gpus=4, resources={"A100": 4}),
    Machine(cpus=2, resources={"licence": 2}),
)


@pytest.fixture(scope="session")
def dask_cluster(private_environment: None) -> Iterator[DaskMachines]:
    """Start three machines with a worker of 2 GiB each.

    The first has 4 threads and 2 T4, the second 2 threads and 4 A100, and the third 2 threads and 2 of the resource
    `licence`. Dask knows no models, so T4 and A100 are resources too. Agents and kernels on the machines have a
    ROOST_RUNTIME_DIR of the cluster (`cluster.environment`), not that of a test.
    """
    with _cluster(is_encrypted=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def dask_tls_cluster(private_environment: None) -> Iterator[DaskMachines]:
    """Start the machines of `dask_cluster` with TLS. Connections need the certificate in `cluster.security`."""
    with _cluster(is_encrypted=True) as cluster:
        yield cluster


def tls_files(cluster: DaskMachines) -> dict[str, str]:
    """Return the certificate of an encrypted cluster as options of `c.RoostDaskBackend`."""
    options = {"tls_ca_file": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}
    return {option: str(cluster.security[name]) for option, name in options.items() if cluster.security}


def environment(cluster: DaskMachines) -> dict[str, str]:
    """Return the environment variables with which Dask's client joins the cluster."""
    tls = {"CA_FILE": "tls_ca_file", "CLIENT__CERT": "tls_client_cert", "CLIENT__KEY": "tls_client_key"}
    files = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": key for name, key in tls.items() if cluster.security}
    return {
        "DASK_SCHEDULER_ADDRESS": cluster.address,
        **{name: str(cluster.security[key]) for name, key in files.items()},
    }


@contextmanager
def _cluster(*, is_encrypted: bool) -> Iterator[DaskMachines]:
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:
        with DaskMachines(*MACHINES, is_encrypted=is_encrypted, environment={VARIABLE: folder}) as cluster:
            yield cluster
        left = end(folder)
    assert not left, "processes outlived the cluster:\n" + "\n".join(left)
    assert not Path(cluster.folder).exists()
