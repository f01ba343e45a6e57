"""One Dask cluster for the whole run, plain and TLS, each started by the first test that asks for it.

Their machines are shared: a test leaves them as it found them. One that kills something has `DaskMachines` of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dask_machines import DaskMachines, Machine, why_not
from leftovers import VARIABLE, end

MACHINES = (
    Machine(cpus=4, gpus=2, resources={"T4": 2}),
    Machine(cpus=2, gpus=4, resources={"A100": 4}),
    Machine(cpus=2, resources={"licence": 2}),
)


@pytest.fixture(scope="session")
def dask_cluster(private_environment: None) -> Iterator[DaskMachines]:
    """Three machines of one worker each, 2 GiB: 4 threads and 2 GPUs; 2 threads and 4 GPUs; 2 threads and 2 of the
    resource licence. Since Dask knows no models, a resource says T4 of the first and A100 of the second.

    What is started on them has the ROOST_RUNTIME_DIR in `environment`, which is no test's own.
    """
    with _cluster(is_encrypted=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def dask_tls_cluster(private_environment: None) -> Iterator[DaskMachines]:
    """The same, where nobody connects without the certificate that `security` has."""
    with _cluster(is_encrypted=True) as cluster:
        yield cluster


def tls_files(cluster: DaskMachines) -> dict[str, str]:
    """The certificate of a cluster that is encrypted, as `c.RoostDaskBackend` wants to know it."""
    options = {"tls_ca_file": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}
    return {option: str(cluster.security[name]) for option, name in options.items() if cluster.security}


def environment(cluster: DaskMachines) -> dict[str, str]:
    """What leads a program that has Dask to the cluster, and into it."""
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
    assert not left, "processes that escaped the cluster's end:\n" + "\n".join(left)
    assert not Path(cluster.folder).exists()
