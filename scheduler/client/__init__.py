"""The client of the scheduler service. Every application and the `roost` command use it.

    any thread or event loop ──> Client ── its own thread ──> ServiceConnection ══ Unix socket ══> service
               ^                    │                              └── none runs? start one
               └── Call, events ────┘

    client.py                `connect` and `Client`: all calls, from any thread or event loop
    call.py                  one call that is under way
    service_connection.py    finds or starts the service, and connects again after a loss
    service_folder.py        the folder of a cluster's service, by the cluster's address, and the command that starts it
    relay.py                 a process of another user that passes connections on to her own service
    service_restart.py       ends a service and starts the next one, for `roost restart-service`
    this_owner.py            this process as an owner of kernels
    running_services.py      the services that run, found without starting one
    running_agents.py        the agents that run on this machine, the same way
    service_checks.py        whether the scheduler or its cluster would refuse a policy or a request
    advice.py                completes the `roost` commands in texts, so that they work as typed
    interpreter_probe.py     what a kernelspec's Python can do
    state_folder.py          private files of the user that outlive a reboot

The client stands above `policies` and below `service` and `roost.provisioners`. It imports nothing of `core`.
"""

from __future__ import annotations

from .client import Client as Client
from .client import connect as connect
from .client import disconnect as disconnect
