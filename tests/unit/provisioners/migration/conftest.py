"""Kernelspecs for the tests of the migration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.provisioners.migration import Translation, translate

MakeSpec = Callable[..., Path]
TranslateNew = Callable[..., Translation]


@pytest.fixture
def make_spec(tmp_path: Path) -> MakeSpec:
    """Write a kernel.json and return its folder."""

    def make(document: Any, *, name: str = "old") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / "kernel.json").write_text(text)
        return folder

    return make


@pytest.fixture
def translate_new(make_spec: MakeSpec) -> TranslateNew:
    """Write a kernel.json and translate it. Other arguments are those of `translate`."""

    def make(document: Any, *, name: str = "old", **options: Any) -> Translation:
        return translate(make_spec(document, name=name), **options)

    return make
