"""The id of a kernel that a client has chosen by KERNEL_ID, as for Enterprise Gateway."""

from __future__ import annotations

import os
import uuid
from collections.abc import Container, Mapping

from tornado.web import HTTPError


def read_kernel_id(env: Mapping[str, str] | None, known: Container[str]) -> str:
    """Return the id that a start's variables name; empty if they name none.

    Jupyter Server starts kernels with its own environment. An id in that is of another kernel. Raises `HTTPError` for a
    text that is no UUID (400), and for an id in `known` (409).
    """
    text = (env or {}).get("KERNEL_ID", "").strip()
    if not text or text == os.environ.get("KERNEL_ID", "").strip():
        return ""
    try:
        kernel_id = str(uuid.UUID(text))
    except ValueError:
        kernel_id = ""
    if kernel_id != text.lower():
        example = uuid.UUID(int=0)
        raise HTTPError(400, f"KERNEL_ID = {text!a:.60} is not possible: give a UUID such as {example}.")
    if kernel_id in known:
        raise HTTPError(409, f"KERNEL_ID = {kernel_id} is the id of another kernel: choose a new one.")
    return kernel_id
