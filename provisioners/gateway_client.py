"""The laptop's side of a gateway: Jupyter Server's own client of gateways, with what it lacks.

- A refusal of the gateway reaches people as its sentence.
- nbclient and Papermill send their token with the websocket too, and name the kernelspec and a session. They use the
  class `roost.provisioners.gateway_client.GatewayKernelManager` as their `kernel_manager_class`.

`server_extension/gateway_kernels.py` has the kernels of a whole server.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import websocket
from jupyter_server.gateway import managers
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.utils import url_path_join
from tornado.escape import url_escape
from tornado.web import HTTPError
from traitlets import DottedObjectName, Type

from .application import build_http_error
from .jupyter_internals import read_responses


class GatewayKernelClient(managers.GatewayKernelClient):  # type: ignore[misc]
    """A client of one kernel behind a gateway."""

    async def start_channels(self, **channels: bool) -> None:
        """Connect with the kernel, and begin to read its messages."""
        gateway = GatewayClient.instance()
        path = url_path_join(gateway.ws_url, gateway.kernels_endpoint, url_escape(self.kernel_id), "channels")
        self.channel_socket = await asyncio.to_thread(
            websocket.create_connection,
            f"{path}?session_id={uuid.uuid4().hex}",  # without it, the gateway keeps nothing for a lost connection
            header=gateway.load_connection_args().get("headers", {}),
            timeout=gateway.KERNEL_LAUNCH_TIMEOUT,
            enable_multithread=True,
            sslopt={
                "ca_certs": gateway.ca_certs,
                "certfile": gateway.client_cert,
                "keyfile": gateway.client_key,
                "cert_reqs": ssl.CERT_REQUIRED if gateway.validate_cert else ssl.CERT_NONE,
                "check_hostname": gateway.validate_cert,
            },
        )
        super(managers.GatewayKernelClient, self).start_channels(**channels)
        self.response_router = Thread(target=read_responses, args=(self,))
        self.response_router.start()


class GatewayKernelManager(managers.GatewayKernelManager):  # type: ignore[misc]
    """The manager of one kernel behind a gateway."""

    client_class = DottedObjectName(f"{__name__}.GatewayKernelClient")
    client_factory = Type(GatewayKernelClient, klass=managers.GatewayKernelClient)

    async def start_kernel(self, **kwargs: Any) -> None:
        """Start a kernel of the kernelspec of this manager, or take over the one of `kernel_id`."""
        kwargs.setdefault("kernel_name", self.kernel_name)
        with _showing_refusals():
            await super().start_kernel(**kwargs)

    async def _async_is_alive(self) -> bool:
        """Return whether the gateway has the kernel. A client of the kernel asks."""
        return bool(await self.is_alive())

    async def restart_kernel(self, **kwargs: Any) -> None:
        """Restart the kernel. Raises `HTTPError`."""
        with _showing_refusals():
            await super().restart_kernel(**kwargs)


@contextmanager
def _showing_refusals() -> Iterator[None]:
    """Let an error of the gateway have the gateway's own sentence. Jupyter Server shows it without its words."""
    try:
        yield
    except HTTPError as problem:
        words, text = problem.args, problem.log_message or ""
        if text.startswith("Error from Gateway") and words:
            raise build_http_error(problem.status_code, str(words[0])) from None
        raise build_http_error(problem.status_code, text % words if words else text) from None
