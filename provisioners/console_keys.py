"""Lets Jupyter's console attach to an encrypted kernel: `jupyter console --existing FILE`.

jupyter_client's console application reads the CURVE keys from a connection file, and does not pass them to its client
(jupyter_client 8.10). Such a client never gets an answer, and reports nothing.

Only Jupyter's console imports this module, by the name of a class in `jupyter_config/jupyter_console_config.json`,
which the wheel installs.
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
    if app.kernel_manager is None and app.curve_publickey is not None:
        keys = {"curve_publickey": app.curve_publickey, "curve_secretkey": app.curve_secretkey}
        app.kernel_client_class = functools.partial(app.kernel_client_class, **keys)  # type: ignore[assignment]
    _init_kernel_client(app)


JupyterConsoleApp.init_kernel_client = init_kernel_client  # type: ignore[method-assign,assignment]
