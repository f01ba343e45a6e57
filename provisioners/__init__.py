"""The part of roost inside a Jupyter application: `RoostProvisioner`, and tools for its kernelspecs.

provisioner.py         RoostProvisioner: jupyter_client starts, signals and stops kernels through it
request_options.py     a kernelspec's options and KERNEL_* variables → Request
kernel_connection.py   the kernel's addresses, ports and keys
encryption.py          keys or private sockets for the kernel's channels
kernel_environment.py  the kernel's environment variables and working directory
exit_watch.py          waits for the end of a kernel
application.py         what differs between a Jupyter Server and other applications
kernelspecs.py         installs, lists, checks and removes roost's kernelspecs
kernel_object.py       a kernel as a Python object, for `roost.start_kernel`
execution.py           the result of code that such a kernel has executed
placed_kernelspecs.py  the installed kernelspecs, with their kernels started through roost
notebook_run.py        executes a notebook, for `roost run`
"""

from __future__ import annotations

from .provisioner import RoostProvisioner as RoostProvisioner

__all__ = ["RoostProvisioner"]
