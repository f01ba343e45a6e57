"""The measured use of nodes, on clusters with metrics and on clusters without."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from roost.placement import Node
from roost.scheduler.backends.kubernetes.api import Api, ApiError
from roost.scheduler.backends.kubernetes.metrics import MetricsReader, Use
from roost.scheduler.backends.kubernetes.nodes import NodeBook
from roost.scheduler.errors import BackendUnavailable

ANSWER = {"items": [{"metadata": {"name": "n1"}, "usage": {"cpu": "250m", "memory": "1Gi"}}]}


class Answers:
    """A stand-in for the API: it returns or raises these answers in turn, and then never answers again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def call(self, method: str, path: str) -> Any:
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def read(*answers: Any) -> list[dict[str, Use]]:
    """Return what a reader reports after these answers."""
    api, reports = Answers(*answers), list[dict[str, Use]]()
    reader = MetricsReader(cast(Api, api), reports.append, every_s=0.0)
    task = asyncio.ensure_future(reader.run())
    while api.answers:  # noqa: ASYNC110 - a step at a time
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    return reports


async def test_the_use_of_a_node_has_an_age() -> None:
    book = NodeBook()
    book.set_node(None, Node(id="n1", cpus=4))
    began = time.monotonic()
    (uses,) = await read(ANSWER)
    book.set_uses(uses)
    (node,) = book.nodes()
    assert (node.cpus_used, node.memory_used_bytes) == (0.25, 1 << 30)
    assert node.metrics_age_s is not None
    assert node.metrics_age_s <= time.monotonic() - began


@pytest.mark.parametrize("status", [403, 404])
async def test_without_a_metrics_server_the_use_is_unknown(status: int) -> None:
    assert await read(ApiError(status, "NotFound", "no metrics")) == [{}]


async def test_old_figures_stay_while_the_api_server_is_away() -> None:
    assert [set(uses) for uses in await read(ANSWER, BackendUnavailable("away"))] == [{"n1"}]
