"""`Section`: one section of the configuration, as the frozen settings that the code reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from traitlets import TraitError, TraitType
from traitlets.config import Config, Configurable

from roost.scheduler.errors import ConfigError

from .memory_size import parse_bytes

Bytes = TypeVar("Bytes", int, int | None)
S = TypeVar("S", bound="Section")


class Memory(TraitType[Bytes, "int | str | None"]):  # type: ignore[misc,unused-ignore]
    """A trait for an amount of memory: people write `8GiB` or bytes, and the code reads bytes."""

    info_text = "an amount of memory such as '8GiB'"

    def validate(self, obj: Any, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            self.error(obj, value)
        try:
            return parse_bytes(value)
        except ConfigError as problem:
            raise TraitError(f"{self.name}: {problem}") from None


class Section(Configurable):  # type: ignore[misc,unused-ignore]
    """The settings of one section, `c.<class name>`.

    Each trait is a setting and is frozen after construction. A value is given as a keyword argument, or comes
    from `config`, or is the trait's default. Raises `TraitError`. Two sections of the same class are equal if
    all their values are equal.

    >>> from traitlets import Unicode
    >>> class RoostDemoBackend(Section):
    ...     address = Unicode("", help="Where the cluster listens.")
    >>> RoostDemoBackend(address="host:1").address
    'host:1'
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for trait in vars(cls).values():
            if isinstance(trait, TraitType):
                trait.tag(config=True)

    def __init__(self, *, config: Config | None = None, **values: Any) -> None:
        if unknown := sorted(values.keys() - self.class_traits(config=True).keys()):
            raise TypeError(f"{type(self).__name__} has no setting {unknown[0]!r}")
        try:
            super().__init__(config=Config() if config is None else config, **values)
        except OverflowError as problem:
            raise TraitError(f"a number is not possible: {problem}.") from None
        for name, value in self._values().items():
            if isinstance(value, float) and math.isnan(value):
                raise TraitError(f"{name} = nan is not possible: give a number.")
        self._is_complete = True

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and getattr(self, "_is_complete", False):  # traitlets sets private names
            raise AttributeError(f"{type(self).__name__} is frozen: use `with_values`")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    __hash__ = None  # type: ignore[assignment]

    def with_values(self: S, **changes: Any) -> S:
        """Return a copy with these values changed."""
        return type(self)(**{**self._values(), **changes})

    def _values(self) -> Mapping[str, Any]:
        return {name: getattr(self, name) for name in self.class_traits(config=True)}
