"""Some tools of the build and the tests have had holes. `pyproject.toml` allows no release with a known one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
HOLES = {
    "cryptography": (
        "49.0.0",
        "CVE-2026-69247: decryption of PKCS#7 messages tells whether a guess was right",
    ),
    "protobuf": ("6.33.4", "CVE-2026-0994: deeply nested JSON exhausts the stack"),
    "pytest": ("9.0.2", "CVE-2025-71176: other users of the machine can foresee its folders in /tmp"),
    "setuptools": ("82.0.1", "CVE-2026-59890: on macOS, an excluded file may get into a source archive"),
    "urllib3": ("2.7.0", "CVE-2026-97687: it ignores the TLS settings of an HTTPS proxy"),
}
"""The last release with a known hole, and one of its holes."""


@pytest.mark.parametrize("name", HOLES)
def test_the_bound_avoids_the_last_release_with_a_hole(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = [*project["build-system"]["requires"], *project["project"]["optional-dependencies"]["test"]]
    bounds = [each for each in map(Requirement, lines) if each.name == name]
    release, hole = HOLES[name]
    assert bounds, f"nothing needs {name} any more"
    assert [str(each) for each in bounds if each.specifier.contains(release)] == [], (
        f"{name} {release} has {hole}"
    )
