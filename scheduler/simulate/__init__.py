"""The comparison of policies behind `roost simulate` (`cli/simulate.py`).

    trace_files ──→ tasks and nodes, from CSV files or a log of decisions
        │
    request_streams ──→ one stream of requests for each seed
        │
    comparison ──→ each stream is placed under each policy (`placement.trace_run`)
        │
    report ──→ the figures side by side, as JSON and as a picture

The command reads the options and prints the table.
"""
