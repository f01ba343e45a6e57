"""The table of docs/migration/kernelspecs.md: what `roost migrate` makes of each shipped kernelspec.

`PYTHONPATH=tests .venv/bin/python -m kit.jupyter.kernelspec_table` writes the table into the page.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.jupyter.shipped_kernelspecs import COMMANDS, generate, list_of_gateway, why_not
from roost.testing.deadlines import allow_s

PAGE = Path(__file__).parents[3] / "docs" / "migration" / "kernelspecs.md"
RUN_HERE = ("authorization_test", "kernel_defaults_test", "python_distributed", "ssh_python")
"""The Python kernelspecs that the backend `local` runs without Spark. A test runs a cell in each."""
RUN_ON = {
    "kubernetes": (
        "python_kubernetes",
        "python_tf_kubernetes",
        "python_tf_gpu_kubernetes",
        "spark_python_kubernetes",
        "k8s_python",
        "k8s_python_tf",
        "k8s_python_spark",
    ),
    "yarn": ("spark_python_yarn_cluster", "yarn_python", "yarn_spark_python"),
    "ssh": ("ssh_python_spark",),
}
"""The Python kernelspecs of clusters, by backend. A test runs a cell in each on a cluster of the tests."""
_HEAD = ("| system | kernelspec | backend | outcome | to do, or why | run |", "|---|---|---|---|---|---|")
_START = "<!-- table -->"
_TIMEOUT_S = 120.0
_NOT_HERE = "not run here"
_STAYS = ("-", "stays", "It is a plain kernelspec, and runs as it is.")


def build_table(data: Path) -> str:
    """Return the table. Gateway Provisioners' kernelspecs are generated below a folder of data."""
    generated = {folder.name: folder for folder in generate(data)}
    judged = _judge([*list_of_gateway(), *generated.values()])
    rows = [_row("JEG", folder.name, judged.get(folder.name)) for folder in list_of_gateway()]
    for command in COMMANDS:
        if command.defect:
            rows.append(f"| GP | {command.name} | - | cannot be generated | {command.defect} | - |")
        else:
            rows.append(_row("GP", command.name, judged[command.name]))
    return "\n".join([*_HEAD, *rows]) + "\n"


def read_table() -> str:
    """Return the table of the page."""
    return PAGE.read_text().partition(_START)[2].strip() + "\n"


def _judge(folders: Sequence[Path]) -> dict[str, Mapping[str, Any]]:
    """Return the JSON of `roost migrate --check` for each kernelspec of another system, by its name."""
    words = [sys.executable, "-m", "roost", "migrate", "--check", "--json", *map(str, folders)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=allow_s(_TIMEOUT_S))
    return {each["name"]: each for each in json.loads(done.stdout)["kernelspecs"]}


def _row(system: str, name: str, judged: Mapping[str, Any] | None) -> str:
    backend, outcome, reason = _STAYS if judged is None else _describe(judged)
    places = {"local": RUN_HERE, **RUN_ON}
    ran_on = next((place for place, names in places.items() if name in names), "")
    run = f"a cell on `{ran_on}`" if ran_on else "-" if outcome == "refused" else _NOT_HERE
    return f"| {system} | {name} | {backend} | {outcome} | {reason or '-'} | {run} |"


def _describe(judged: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the backend, the outcome, and the decisions or the reason of a refusal."""
    backend = judged["backend"] or "-"
    if judged["state"] == "refused":
        return backend, "refused", judged["problem"]
    asked = [line for line in judged["lines"] if line["kind"] == "please decide"]
    told = [f"`{line['option'].rpartition(' ')[2]}`: {line['text']}" for line in asked]
    return backend, "a decision" if asked else "taken over", "; ".join(told)


def main() -> int:
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="kernelspecs-") as data:
        table = build_table(Path(data))
    PAGE.write_text(PAGE.read_text().partition(_START)[0] + f"{_START}\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
