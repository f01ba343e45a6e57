"""The part of roost inside a Jupyter application: `RoostProvisioner`, and tools for its kernelspecs.

    jupyter_client ── KernelManager ──> RoostProvisioner ──> Client ══> service
    roost.start_kernel ─────┘                  ^                │
                                               └── ExitWatch <──┘  events: the end, and what a start waits for

provisioner.py         RoostProvisioner: jupyter_client starts, signals and stops kernels through it
request_options.py     a kernelspec's options and KERNEL_* variables → Request
kernel_connection.py   the kernel's addresses, ports and keys
encryption.py          keys or private sockets for the kernel's channels
kernel_environment.py  the kernel's environment variables and working directory
spark_mode.py          refuses the cluster mode of Spark, which takes a kernel out of its lease
exit_watch.py          waits for the end of a kernel
application.py         what differs between a Jupyter Server and other applications
jupyter_internals.py   the private members of Jupyter's objects that roost uses
kernelspecs.py         installs, lists, checks and removes roost's kernelspecs
kernel_object.py       a kernel as a Python object, for `roost.start_kernel`
execution.py           the result of code that such a kernel has executed
placed_kernelspecs.py  the installed kernelspecs, with their kernels started through roost
console_keys.py        passes a kernel's keys to `jupyter console --existing`, and to `qtconsole` and `run`
gateway_client.py      what Jupyter Server's client of a gateway lacks
journal_reader.py      the messages of a kernel that its node has kept
kernel_json.py         reads and checks a kernel.json
kernel_resources.py    the logos and other files of a kernelspec, for a copy
gateway/               the server that `roost gateway` runs for many people
migration/             translates kernelspecs of Enterprise Gateway and its relatives
server_extension/      roost's part of a Jupyter Server

This package stands above `roost.scheduler.client`, and below the `roost` command. It imports only the modules of the
scheduler that run in an application, never those of the service.
"""

from __future__ import annotations

from .provisioner import RoostProvisioner as RoostProvisioner

__all__ = ["RoostProvisioner"]
