"""Checks whether the extension is enabled in this environment.

`pip install --editable` does not enable it.
"""

from __future__ import annotations

from roost.scheduler.service.messages import Finding


def find_problems() -> list[Finding]:
    """Return a list with a warning if the extension is off; empty if it is on, or without Jupyter Server."""
    try:
        from jupyter_core.paths import jupyter_config_path
        from jupyter_server.extension.config import ExtensionConfigManager
    except ImportError:
        return []
    configuration = ExtensionConfigManager(read_config_path=jupyter_config_path())
    if configuration.get_jpserver_extensions().get("roost"):
        return []
    what = (
        "roost's extension of Jupyter Server is off: starts that wait block, and no server takes over kernels"
    )
    return [
        {"level": "warning", "what": what, "do": "run `jupyter server extension enable --sys-prefix roost`"}
    ]
