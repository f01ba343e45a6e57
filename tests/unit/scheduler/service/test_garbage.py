"""The garbage collector of the service."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from roost.scheduler.service import garbage


@pytest.fixture
def collector() -> Iterator[None]:
    """Set the collector up as in a service. Afterwards it is as it was."""
    before, callbacks = gc.get_threshold(), list(gc.callbacks)
    garbage.set_up()
    yield
    gc.set_threshold(*before)
    gc.callbacks[:] = callbacks
    gc.unfreeze()


class Cell:
    """An object that a test can find again."""


def test_a_full_collection_looks_at_an_object_once(collector: None) -> None:
    kept, cycle = Cell(), Cell()
    cycle.own = cycle  # type: ignore[attr-defined]
    del cycle
    gc.collect()
    assert not any(type(each) is Cell for each in gc.get_objects()), "kept is frozen, the cycle has gone"
    assert gc.is_tracked(kept)
    frozen = gc.get_freeze_count()
    del kept
    assert gc.get_freeze_count() < frozen, "a frozen object is freed as any other"
