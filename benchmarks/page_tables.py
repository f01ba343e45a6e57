"""The kind of table that docs/benchmarks.md has. Each script has its own tables, and `write_page.py` fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PLAIN_JUPYTER = "plain local Jupyter"
LIFE = {
    "start → first `execute_reply`": "start",
    "the same at once after another start": "again",
    "interrupt → reply of the cell that slept": "interrupt",
    "restart → first `execute_reply`": "restart",
    "stop": "stop",
}
"""The rows of the stages that `roost bench start` measures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTable:
    """A table of docs/benchmarks.md.

    >>> columns = {"plain Jupyter": "{}/plain", "roost": "{}/roost"}
    >>> PageTable(name="start", columns=columns, rows={"a first start": "first"}).figures
    {'a first start': ['first/plain', 'first/roost']}
    """

    name: str
    """The name in the table's markers: the script's, and in its further tables a hyphen and more."""
    columns: Mapping[str, str]
    """By title, the name of a figure with {} for the row's part."""
    rows: Mapping[str, str | Sequence[str]]
    """By label, the row's part, or the name of a figure or an empty text for each column."""
    ratios: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By title, the columns of numerator and denominator."""
    corner: str = ""
    packages: Sequence[str] = ()
    """Packages whose versions are shown besides those of Python, ipykernel and jupyter_client."""
    has_picture: bool = True

    @property
    def source(self) -> str:
        """The script's name. The table with this name also has the missed bounds, the notes and the picture."""
        return self.name.partition("-")[0]

    @property
    def figures(self) -> dict[str, list[str]]:
        """The names of each row's figures, by label."""
        return {
            label: [name.format(row) for name in self.columns.values()] if isinstance(row, str) else list(row)
            for label, row in self.rows.items()
        }


def compare_with_plain(
    *,
    name: str,
    rows: Mapping[str, str | Sequence[str]],
    plain: str = PLAIN_JUPYTER,
    corner: str = "",
    packages: Sequence[str] = (),
) -> PageTable:
    """Return a table with the sides `plain` and `roost`, and their ratio. `plain` is the title of the first column."""
    return PageTable(
        name=name,
        columns={plain: "{}/plain", "roost": "{}/roost"},
        rows=rows,
        ratios={"roost ÷ plain": ("roost", plain)},
        corner=corner,
        packages=packages,
    )
