"""The comparison of policies behind `roost simulate` (`cli/simulate.py`).

    trace_files ──→ tasks and nodes, from CSV files or a log of decisions
        │
    request_streams ──→ one stream of requests for each seed
        │
    comparison ──→ each policy, one after the other, with the progress
        │
    policy_runs ──→ each stream is placed under a policy (`placement.trace_run`)
    foreign_runs ──→ the same, in a process of its own, under a policy that roost does not ship
        │
    report ──→ the figures side by side, as JSON and as a picture

The command reads the options and prints the table.
"""
