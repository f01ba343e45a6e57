"""The files of a trace: tasks and nodes as CSV, and logs of decisions (`trace_files.py`). Benchmarks read them."""
