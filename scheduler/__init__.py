"""The scheduler: it admits, queues, places, leases and launches kernels. It runs in a service, which clients call.

    roost (cli/) ─────────┐
    programs, ────────> client/ ══ Unix socket ══> service/ ───> core/ ──┬──> policies/ ──> roost.placement
    roost.provisioners       ^                          │                ├──> backends/ ──> the cluster manager
                             └──────── events ──────────┴──── events ────┤        │ events: nodes, leases
                                                                         │ <──────┘
                                                                         └──> agents (roost.launchers) ──> events

The folders form a stack. Each imports only folders below it, `roost.launchers` and `roost.placement`:

    cli/                          the `roost` command, which stands above `roost.provisioners` too
    service/                      the process: its socket, operations, metrics and the decisions in its log
    core/, client/                the scheduler itself; the way to the service for every application
    policies/, backends/NAME/     placement policies by name; a folder for each cluster manager
    config/                       the operator's settings
    backends/                     the interface of a backend, and calls to agents
    errors.py, messages.py        the errors and values that cross the socket
    input_files.py                files of users and operators, with one sentence for each refusal
"""
