"""`roost doctor` looks for the extension in Jupyter Server's configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from roost.provisioners.server_extension.setup_check import find_problems

INSTALLED = Path(__file__).parents[4] / "provisioners/server_extension/jupyter_config/roost.json"


@pytest.fixture(autouse=True)
def config_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, the only one from which Jupyter's configuration is read."""
    monkeypatch.setattr("jupyter_core.paths.jupyter_config_path", lambda: [str(tmp_path)])
    return tmp_path


def test_an_extension_that_no_file_names_is_reported() -> None:
    (finding,) = find_problems()
    assert finding["level"] == "warning"
    assert "jpserver_extensions" in finding["do"], "Jupyter enables only what a file names"
    assert "without --editable, which `jupyter console --existing FILE` needs" in finding["do"]


def test_an_extension_that_is_off_is_reported(config_folder: Path) -> None:
    (config_folder / "jupyter_server_config.json").write_text(
        '{"ServerApp": {"jpserver_extensions": {"roost": false}}}'
    )
    (finding,) = find_problems()
    assert "jupyter server extension enable" in finding["do"]


def test_an_installed_extension_is_no_problem(config_folder: Path) -> None:
    (config_folder / "jupyter_server_config.d").mkdir()
    shutil.copy(INSTALLED, config_folder / "jupyter_server_config.d")
    assert find_problems() == []
