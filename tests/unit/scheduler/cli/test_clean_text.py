"""Text from other users cannot control the terminal: it moves no cursor, hides no line, sets no title."""

from __future__ import annotations

import io
import json

import pytest
from rich.text import Text

from roost.scheduler.cli.clean_text import CleanOutput, clean, clean_but_colours
from roost.scheduler.cli.tables import build_table, open_console, print_table

ATTACKS = {
    "\x1b[2J\x1b[1;1H": "\\u001b[2J\\u001b[1;1H",
    "\x1b]0;title\x07": "\\u001b]0;title\\u0007",
    "\x9b2J": "\\u009b2J",
    "a\rb\r\nc": "a\nb\nc",
    "gpj.\u202exe": "gpj.\\u202exe",
    "\ud800": "\\ud800",
    "a\x08b\x7f\0": "a\\u0008b\\u007f\\u0000",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_control_characters_are_shown_as_they_are(attack: str) -> None:
    assert clean(attack) == clean_but_colours(attack) == ATTACKS[attack]


def test_colours_stay_and_end_with_the_text() -> None:
    assert clean("\x1b[31mred\t\x1b[0m\n") == "\\u001b[31mred\t\\u001b[0m\n"
    assert clean_but_colours("\x1b[31mred\x1b[0m\n") == "\x1b[31mred\x1b[0m\n"
    assert clean_but_colours("\x1b[1;38:5:9mred") == "\x1b[1;38:5:9mred\x1b[0m"


def test_a_documents_values_stay_the_same() -> None:
    stream = io.StringIO()
    values = [*ATTACKS, "ä 語 🙂"]
    print(json.dumps(values, ensure_ascii=False), file=CleanOutput(stream))
    assert json.loads(stream.getvalue()) == values
    assert "ä 語 🙂" in stream.getvalue()
    assert "\x9b" not in stream.getvalue()


def test_cells_of_tables_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    table = build_table("USER")
    table.add_row("\x1b[8mada\x1b[2K")
    print_table(open_console(), table)
    assert capsys.readouterr().out == "USER\n\\u001b[8mada\\u001b[2K\n"


def test_styled_cells_have_none_either(capsys: pytest.CaptureFixture[str]) -> None:
    table = build_table("STATE", "MEMORY")
    table.add_row(Text("\x1b[31mbusy", style="green"), Text("1 MiB", style="red"))
    print_table(open_console(), table)
    assert capsys.readouterr().out == "STATE           MEMORY\n\\u001b[31mbusy  1 MiB\n"
