"""Lets Jupyter's consoles attach to an encrypted kernel: `jupyter console --existing FILE`, and `qtconsole` and `run`.

jupyter_client's base of these applications reads the CURVE keys from a connection file, and does not pass them to its
client (jupyter_client 8.10). Such a client never gets an answer, and reports nothing.

Only these applications import this module. The wheel installs a configuration for each (`jupyter_config/`). That of
the console and of `jupyter run` names a class of this module. The Qt console ignores that setting, and imports the
module in a configuration that is Python.
"""

from __future__ import annotations

import functools

from jupyter_client.consoleapp import JupyterConsoleApp
from jupyter_client.manager import KernelManager

_init_kernel_client = JupyterConsoleApp.init_kernel_client


class ConsoleKernelManager(KernelManager):
    """jupyter_client's own manager of a kernel. Its name in a console's configuration imports this module."""


def init_kernel_client(app: JupyterConsoleApp) -> None:
    """Make the client of a console application, with the keys of the connection file if it has any."""
    if app.kernel_manager is not None or app.curve_publickey is None:
        _init_kernel_client(app)
        return
    without_keys = app.kernel_client_class
    keys = {"curve_publickey": app.curve_publickey, "curve_secretkey": app.curve_secretkey}
    app.kernel_client_class = functools.partial(without_keys, **keys)  # type: ignore[assignment]
    _init_kernel_client(app)
    app.kernel_client_class = without_keys  # a later tab of the Qt console may show another kernel


JupyterConsoleApp.init_kernel_client = init_kernel_client  # type: ignore[method-assign,assignment]
