"""A turn that only one service of a Ray cluster has: to count the groups that wait for new nodes, and to add its own.

Without it, two services could count at the same moment and both ask. Ray may start two nodes before one of them
withdraws. The turn is a key in Ray's own store, which only one service can put there. All functions block for
milliseconds.
"""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

_KEY, _NAMESPACE = b"asking-turn", b"roost"
_STALE_S = 10.0
"""A service that has had its turn for so long has ended, or its clock differs."""


def take(owner: str) -> bool:
    """Take the turn for this service. Return False while another one has it."""
    try:
        from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

        value = f"{owner} {time.time()}".encode()
        if not _internal_kv_put(_KEY, value, overwrite=False, namespace=_NAMESPACE):
            return True
        since = (_internal_kv_get(_KEY, namespace=_NAMESPACE) or b"").rpartition(b" ")[2]
        if since and abs(time.time() - float(since)) > _STALE_S:
            _internal_kv_del(_KEY, namespace=_NAMESPACE)
    except (ImportError, AttributeError, TypeError, ValueError) as problem:
        log.debug("this Ray gives no turns: %s", problem)
        return True
    return False


def give_back(owner: str) -> None:
    """End the turn of this service. Does nothing if another one has it."""
    try:
        from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get

        if (_internal_kv_get(_KEY, namespace=_NAMESPACE) or b"").startswith(f"{owner} ".encode()):
            _internal_kv_del(_KEY, namespace=_NAMESPACE)
    except (ImportError, AttributeError, TypeError) as problem:
        log.debug("this Ray gives no turns: %s", problem)
