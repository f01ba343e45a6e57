"""The installed kernelspecs, changed so that all of them start kernels through roost, for `roost.start_kernel`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import zmq.asyncio
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.errors import ConfigError

from .kernel_connection import find_context
from .kernel_json import PROVISIONER, find_wrong_env
from .kernelspecs import check_config, read_kernelspec


class _PlacedKernelspecs(KernelSpecManager):
    """The installed kernelspecs, with roost as their provisioner."""

    options: Mapping[str, Any] = {}
    """Options that override a kernelspec's own."""
    env: Mapping[str, str] = {}
    """Variables that are added to those of a kernelspec."""
    backend_options: Mapping[str, Any] = {}
    """Options of the backend that override a kernelspec's own."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        spec = super().get_kernel_spec(kernel_name)
        own = spec.metadata.get("kernel_provisioner", {})
        config = dict(own.get("config", {})) if own.get("provisioner_name") == PROVISIONER else {}
        own_backend = config.get("backend", DEFAULT_BACKEND)
        if self.options.get("backend", own_backend) != own_backend:
            for name in ("options", "backend_options"):  # they belong to the other backend
                config.pop(name, None)
        if self.backend_options:
            config.pop("backend_options", None)
        placed = {"provisioner_name": PROVISIONER, "config": {**config, **self.options}}
        spec.metadata = {**spec.metadata, "kernel_provisioner": placed}
        spec.env = {**spec.env, **self.env}
        return spec


class _PromptManager(AsyncKernelManager):
    """A kernel manager without the pause of 10 ms that jupyter_client makes after each start and shutdown."""

    start_kernel = inspect.unwrap(AsyncKernelManager.start_kernel)
    shutdown_kernel = inspect.unwrap(AsyncKernelManager.shutdown_kernel)
    _async_start_kernel = start_kernel  # of a restart
    _async_shutdown_kernel = shutdown_kernel


def build_manager(
    kernel_name: str,
    options: Mapping[str, Any],
    *,
    env: Mapping[str, str] | None = None,
    backend_options: Mapping[str, Any] | None = None,
) -> tuple[AsyncKernelManager, Mapping[str, Any]]:
    """Return a kernel manager for one kernel, and its options; raises `ConfigError`.

    The returned options are those of the kernelspec, overridden by `options`.
    """
    for name, value in (("env", env), ("backend_options", backend_options)):
        if not isinstance(value or {}, Mapping):
            raise ConfigError(f"{name} = {value!r:.60} is not an object of names and values.")
    if wrong := find_wrong_env(dict(env or {})):
        raise ConfigError(f"{wrong}.")
    specs = _PlacedKernelspecs()
    specs.options = dict(options)
    # Jupyter replaces `${NAME}` in a kernelspec's variables.
    specs.env = {name: value.replace("$", "$$") for name, value in (env or {}).items()}
    specs.backend_options = backend_options or {}
    merged = read_kernelspec(specs, kernel_name).metadata["kernel_provisioner"]["config"]
    check_config(merged, env or {})
    config = Config({"RoostProvisioner": {"backend_options": dict(specs.backend_options)}})
    context = find_context(zmq.asyncio.Context)
    manager = _PromptManager(
        kernel_name=kernel_name, kernel_spec_manager=specs, config=config, context=context
    )
    return manager, merged
