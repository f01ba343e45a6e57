"""A change that makes roost larger says so: each room's lines and statements, interfaces, settings, commands, modules.

A change that needs more edits a table here, and its commit says why. One that needs clearly less lowers the table.
"""

from __future__ import annotations

import argparse
import ast
import importlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from roost.provisioners.server_extension.extension import RoostExtension
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.cli.main import make_parser
from roost.scheduler.config.settings import RoostScheduler

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("placement", "scheduler", "launchers", "provisioners", "benchmarks")
BACKENDS = ("local", "ray", "dask", "docker", "kubernetes", "yarn", "ssh")
LEAST_PROSE = 0.13
"""Docstrings are at least this share of the product's lines: no room gets smaller by losing its reasons."""


class Size(NamedTuple):
    lines: int
    statements: int


ROOMS: dict[str, Size] = {}
INTERFACES: dict[str, int] = {}
