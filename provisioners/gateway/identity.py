"""The identity provider of a gateway: a request's token or header says who calls. It knows no cookies and no login."""

from __future__ import annotations

import re
from typing import Any

from jupyter_server.auth import IdentityProvider, User
from tornado.web import HTTPError
from traitlets import Unicode

from roost.provisioners.application import build_http_error as refuse
from roost.provisioners.jupyter_internals import mark_token_authenticated

from .user_sources import check_name


class GatewayIdentity(IdentityProvider):  # type: ignore[misc]
    """The identity provider of one gateway. An unknown caller gets 401 from each handler that is not open."""

    token = Unicode("")
    """The one token of a Jupyter Server, which a gateway does not have."""

    def get_handlers(self) -> list[Any]:
        """Return no page for a login."""
        return []

    async def get_user(self, handler: Any) -> User | None:
        """Return the caller of a request; None for a request that anybody may send. Raises `HTTPError`."""
        if handler.request.method == "OPTIONS" or getattr(handler, "access", "") == "open":
            return None
        name = await self.identify(handler.request)
        # The caller's token is in the request, or its site was checked: no cookie has to prove where it comes from.
        mark_token_authenticated(handler)
        return User(username=name)

    async def identify(self, request: Any) -> str:
        """Return the name of the caller. Raises `HTTPError`, and writes it into the audit file."""
        gateway = self.parent.gateway
        try:
            caller = await gateway.source.identify(request)
            if not caller.has_token:
                self._check_site(request)
            return check_name(caller.name)
        except HTTPError as problem:
            sentence, address = str(problem), request.remote_ip
            if problem.status_code == 401:
                gateway.audit.write_unknown(address, sentence)
            else:
                gateway.audit.write("request", outcome="refused", address=address, sentence=sentence)
            raise

    def _check_site(self, request: Any) -> None:
        """Raise `HTTPError` if a web site that the operator has not named has sent the request."""
        site = request.headers.get("Origin") or request.headers.get("Sec-Websocket-Origin")
        if site is None:
            return
        allowed, pattern = self.parent.allow_origin, self.parent.allow_origin_pat
        if site.lower() != allowed and not (pattern and re.fullmatch(pattern, site.lower())):
            raise refuse(403, "This web site may not use the gateway: the operator names it in allow_origin.")
