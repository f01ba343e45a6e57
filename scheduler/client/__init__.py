"""The client of the scheduler service, as every application uses it."""

from __future__ import annotations

from .client import Client as Client
from .client import connect as connect
from .client import disconnect as disconnect
