"""The client of the scheduler service. Every application and the `roost` command use it.

client.py              `connect` and `Client`: all calls, from any thread or event loop
running_services.py    the services that run, found without starting one
service_connection.py  finds or starts the service, and connects again after a loss
call.py                one call that is under way
identity.py            this process as an owner of kernels
interpreter_probe.py   what a kernelspec's Python can do
service_checks.py      whether the scheduler would refuse a policy or a request
state_folder.py        private files of the user that outlive a reboot
"""

from __future__ import annotations

from .client import Client as Client
from .client import connect as connect
from .client import disconnect as disconnect
