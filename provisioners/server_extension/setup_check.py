"""Checks whether the extension is enabled in this environment.

`pip install --editable` does not enable it.
"""

from __future__ import annotations

from roost.scheduler.messages import Finding


def find_problems() -> list[Finding]:
    """Return a list with a warning if the extension is off; empty if it is on, or without Jupyter Server."""
    try:
        from jupyter_core.paths import jupyter_config_path
        from jupyter_server.extension.config import ExtensionConfigManager
    except ImportError:
        return []
    configuration = ExtensionConfigManager(read_config_path=jupyter_config_path())
    known = configuration.get_jpserver_extensions()
    if known.get("roost"):
        return []
    what = (
        "roost's extension of Jupyter Server is off: starts that wait block, and no server takes over kernels"
    )
    do = "run `jupyter server extension enable --sys-prefix roost`"
    if "roost" not in known:  # an editable installation leaves the file out that names it
        option = "--ServerApp.jpserver_extensions=\"{'roost': True}\""
        do = (
            "install roost without --editable, which `jupyter console --existing FILE` needs, too; "
            f"or start servers with {option}"
        )
    return [{"level": "warning", "what": what, "do": do}]
