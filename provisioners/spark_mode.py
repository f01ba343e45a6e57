"""Refuses Spark's cluster mode, which takes a kernel out of its lease."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from roost.scheduler.errors import ConfigError

_VARIABLES = ("PYSPARK_SUBMIT_ARGS", "SPARK_OPTS", "KERNEL_EXTRA_SPARK_OPTS")
"""Variables with arguments of spark-submit. The last two are those of Enterprise Gateway's kernelspecs."""
_CLUSTER_MODE = re.compile(
    r"""(--deploy-mode|spark\.submit\.deployMode)[\s=]+["']?cluster\b|--master[\s=]+["']?yarn-cluster\b"""
)
_REFUSAL = (
    "Spark's cluster mode would run this kernel in a container that roost does not lease: "
    "use `--deploy-mode client`."
)


def check_deploy_mode(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Raise `ConfigError` if a kernel's command or environment asks for Spark's cluster mode.

    The driver, and with it the kernel, would then be a process of Spark's application master. No backend could find,
    limit or end it.
    """
    texts = (" ".join(argv), *(env.get(name, "") for name in _VARIABLES))
    if any(map(_CLUSTER_MODE.search, texts)):
        raise ConfigError(_REFUSAL)
