"""The scheduler as a process of its own. Its first client starts it (`client/service_connection.py`).

    client ══ Unix socket ══> RpcServer ──> input_checks ──> OPERATIONS ──> core.Scheduler and its parts
       ^                          ^                                             │          server, input_checks
       └──────── events ──────────┴────────────── core.EventStream <────────────┘
                                                     ├──> the log: one line for each decision  decision_log
                                                     └──> Metrics for Prometheus, if wanted        metrics, metrics_port

    served_cluster            leaves, if another service of the user serves the cluster
    garbage                   how Python collects garbage in a service with many nodes and kernels

`server` reads the settings, imports the one backend that it was started for, and puts all parts together.

The service stands above `core` and `client`. `client/service_folder.py` names its folder and its command.
"""
