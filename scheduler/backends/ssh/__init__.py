"""Kernels on hosts that a person can log in to: OpenSSH's own client starts an agent on each host that is needed.

    SshBackend ──> SshManager                                                           backend, manager, settings
                      ├── lists the hosts, with their labels                            host_list, host
                      ├── remembers what earlier services have seen                     host_memory
                      ├── runs the prologue of a kernelspec                             prologues
                      ├── asks a host a question                                        questions
                      └── contacts a host: as many at once as it allows                 contacts
                             └── ssh HOST, one process ══> the host                     open_ssh
                                    ├── with a configuration of roost's own             client_config
                                    ├── the line for the login shell there              remote_line
                                    ├── the program that runs there                     far_side
                                    └── a failure becomes one sentence                  problems

`options` are those of one kernel. `python_probe` tests a kernelspec's Python on hosts, before it is installed.

The machine's book of each host holds the leases. A host where the user has no kernel keeps no agent and no connection.
"""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec, RequestOption

SPEC = BackendSpec(
    name="ssh",
    runs_as_its_user=True,
    settings="roost.scheduler.backends.ssh.settings:RoostSshBackend",
    create="roost.scheduler.backends.ssh.backend:create",
    requires_encryption=True,
    follows_visible_gpus=True,
    probe="roost.scheduler.backends.ssh.python_probe:probe",
    request_options=(
        RequestOption(
            name="prologue",
            kind=str,
            help="lines of sh that prepare the kernel's environment on its host, such as `module load cuda`",
        ),
        RequestOption(
            name="cwd", kind=str, help="the folder on the host where the kernel starts: /data or ~/work"
        ),
    ),
)
