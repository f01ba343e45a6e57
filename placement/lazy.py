"""Values that are worked out when somebody looks: a decision at 100,000 nodes takes 0.1 ms, its grounds far longer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar, overload

T = TypeVar("T")


class LaterSequence(Sequence[T]):
    """The elements that ``make`` gives, kept once all were read. Pickled and compared as the tuple that it stands for.

    The first few (``later[:10]``) cost no more than they do.
    """

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Iterable[T]]) -> None:
        self._make: Callable[[], Iterable[T]] | None = make
        self._made: tuple[T, ...] = ()

    def _all(self) -> tuple[T, ...]:
        if self._make is not None:
            self._made, self._make = tuple(self._make()), None
        return self._made

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if self._make is not None and isinstance(index, slice) and (index.start, index.step) == (None, None):
            stop: int | None = index.stop
            if stop is not None and stop >= 0:
                return tuple(islice(self._make(), stop))
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._all(),)


class LaterMapping(Mapping[str, float]):
    """The items that ``make`` returns, asked for once. Pickled and compared as the dict that it stands for."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Mapping[str, float]]) -> None:
        self._make: Callable[[], Mapping[str, float]] | None = make
        self._made: dict[str, float] = {}

    def _all(self) -> dict[str, float]:
        if self._make is not None:
            self._made, self._make = dict(self._make()), None
        return self._made

    def __getitem__(self, key: str) -> float:
        return self._all()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self._all(),)
