"""`roost gateway`: one Jupyter Server that starts roost's kernels for many people.

settings.py         RoostGateway: the settings, the file that has them, and what `roost doctor` says about them
server.py           the application: Jupyter Server with the parts below, and the way in which it starts and takes over
gateway.py          Gateway: what all parts share
user_sources.py     who calls: a file of tokens, JupyterHub, a trusted proxy's header, or trust
token_file.py       the tokens of people, as hashes
identity.py         the identity provider, which asks the source of users
own_kernels.py      whose kernel it is: the records of all kernels, and the authorizer
start_variables.py  what a start may say
kernels.py          the kernel manager: starts for a person, caps, the environment of an adopted kernel
relays.py           kernels that run as the person who asked: sudo starts a relay into the person's own service
handlers.py         the closed list of routes, and their handlers
audit.py            the audit file
operator_socket.py  the private socket by which `roost` lists and ends the kernels of all people

    request ──> handlers ── GatewayIdentity ──> a source of users: who calls
                   │ └───── OwnKernelsOnly ───> OwnKernels: whose kernel is it
                   v
             GatewayKernels ── build_variables, caps, OwnKernels ──> PendingStarts ──> RoostProvisioner ──> service

Jupyter Server calls the functions below as those of `server_extension`: the gateway's extension takes its place.
"""

from __future__ import annotations

from typing import Any

from roost.provisioners.server_extension import (
    _load_jupyter_server_extension as _load_jupyter_server_extension,
)
from roost.provisioners.server_extension import (
    _start_jupyter_server_extension as _start_jupyter_server_extension,
)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "roost.provisioners.gateway", "name": "roost"}]


def _link_jupyter_server_extension(serverapp: Any) -> None:
    from .server import GatewayExtension

    serverapp.roost = GatewayExtension(parent=serverapp)
    serverapp.roost.link()
