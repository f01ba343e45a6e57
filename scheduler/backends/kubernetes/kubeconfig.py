"""The cluster that a kubeconfig file names, read without the package `kubernetes`: each client asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from roost.launchers.daemon.file_input import read_text
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input_yaml

from .settings import RoostKubernetesBackend

DEFAULT_FILE = "~/.kube/config"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""The file with the namespace of a pod."""


def name_cluster(settings: RoostKubernetesBackend) -> str:
    """Return the API server and the namespace that the settings name, as `BackendSpec.cluster` wants them."""
    default = os.path.expanduser(DEFAULT_FILE)
    named = settings.address or os.environ.get("KUBECONFIG", "")
    if not named and not os.path.exists(default) and NAMESPACE_FILE.exists():
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
        host = f"[{host}]" if ":" in host else host
        return f"https://{host}:{port}/{settings.namespace or read_text(NAMESPACE_FILE, may_be_link=True).strip()}"
    files = [file for file in (named or default).split(os.pathsep) if os.path.exists(file)]
    documents = [read_input_yaml(file, is_json=False) for file in files]
    try:
        chosen = settings.context or next(
            each["current-context"] for each in documents if each.get("current-context")
        )
        context = _find(documents, "contexts", chosen)["context"]
        server = str(_find(documents, "clusters", context["cluster"])["cluster"]["server"])
        return f"{server.rstrip('/')}/{settings.namespace or context.get('namespace') or 'default'}"
    except (StopIteration, KeyError, TypeError, AttributeError):
        raise ConfigError(f"the Kubernetes configuration {named or default} names no cluster.") from None


def _find(documents: Iterable[Mapping[str, Any]], kind: str, name: str) -> Mapping[str, Any]:
    """Return the first entry of this name, as kubectl does; raises `StopIteration`."""
    return next(entry for each in documents for entry in each.get(kind) or () if entry["name"] == name)
