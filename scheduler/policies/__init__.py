"""The placement policies of a scheduler, by name.

    core ──> PolicyCatalog.decide ──> a shipped policy                           catalog, roost.placement
      │           │        └────────> SandboxedPolicy: a foreign one             sandbox
      │           │                      │ socket: questions                      policy_messages
      │           │                      ▼         decisions, checked twice       decision_check
      │           │                   the policy's own process                    policy_process
      │           │                      ├── loads it by name, file or module     loader
      │           │                      └── or unpacks what a client has sent    pickling
      │           └── RecentRequests ──> Workload, to which policies adapt       recent_requests
      └──> build_explanation, …: what `roost explain` adds            explain
    `roost explain --snapshot` ──> explain_saved: without a service              offline

A foreign policy is code that roost does not ship. If it fails, `balanced` places the kernel instead.

This package stands above `config`, and below `core` and `client`. The client packs its policies with `pickling`.
"""
