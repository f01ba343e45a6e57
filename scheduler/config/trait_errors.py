"""Sentences for people about values that traitlets refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Dict, Enum, Float, HasTraits, Int, List, TraitError, Unicode

_KINDS: Mapping[type, str] = {
    Unicode: "text",
    Bool: "true or false",
    Int: "a whole number",
    Float: "a number",
    List: "a list of texts",
    Dict: "an object of names and texts",
}


def describe_refusal(problem: TraitError, owner: type[HasTraits], values: Mapping[str, Any]) -> str:
    """Return in one sentence which of `values` a trait of `owner` refuses, and what the trait allows."""
    named = re.search(r"'(\w+)' trait", str(problem))
    if named is None:  # from a check of our own
        return " ".join(str(problem).split())
    name, trait = named[1], owner.class_traits()[named[1]]
    if isinstance(trait, Enum):
        allowed = f"one of {', '.join(str(each) for each in trait.values or () if each != '')}"
    else:
        allowed = _KINDS.get(type(trait), trait.info_text)
        if name.endswith("_s"):
            allowed = allowed.replace("number", "number of seconds")
    least, most = getattr(trait, "min", None), getattr(trait, "max", None)
    if least is not None:
        allowed += f" from {least:g} to {most:g}" if most not in (None, math.inf) else f", {least:g} or more"
    # A value that is missing here comes from the application's configuration.
    value = f" = {values[name]!r:.60}" if name in values else ""
    return f"{name}{value} is not possible: give {allowed}."
