"""The other holders of this machine, for people. Names come from uids, never from the file of a stranger."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterable

from roost.launchers.machine_book.folder_reader import Held
from roost.launchers.protocol.messages import Holder


def list_holders(
    held: Iterable[Held], *, shows_names: bool, now: float | None = None, uid: int | None = None
) -> tuple[Holder, ...]:
    """Return the holders of promises, the oldest first. `uid` is the user for whom they are listed."""
    now = time.time() if now is None else now
    uid = os.getuid() if uid is None else uid
    return tuple(
        sorted(
            (
                Holder(
                    user=_name_user(each.uid) if shows_names or each.uid == uid else "",
                    is_own=each.uid == uid,
                    since=max(0.0, min(each.promise.since, now)),  # a stranger can write any time
                    cpus=each.promise.cpus,
                    memory_bytes=each.promise.memory_bytes,
                    devices=each.promise.devices,
                )
                for each in held
            ),
            key=lambda holder: (holder.since, holder.user),
        )
    )


def _name_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
