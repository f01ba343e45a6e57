"""`roost bench`: how fast kernels start and answer on a cluster, and how many of them each node holds.

    command.py ── options → sides in private folders; table and JSON file at the end
        │
        ├── starts.py      start, interrupt, restart and stop of kernels; first starts (first_start.py)
        ├── latency.py     round trips of a running kernel, idle and under load
        ├── density.py     kernels per node until a limit, with their memory
        ├── churn.py       starts and stops for some time, and the processes and files left after them
        ├── placement.py   the time of a decision on busy clusters
        ├── policies.py    policies side by side on a trace (trace_files.py, trace_run.py)
        └── compare.py     two JSON files: the figures that differ by more than noise

    runs.py      a run from its warm-up to its table and files, which Ctrl-C ends early
    peer_process.py    a process of its own for the kernels of another provisioner
    sides.py     the sides of a comparison: roost on a backend, plain local Jupyter, an installed kernelspec
    kernel.py    a kernel with all channels open, as a notebook has it
    world.py     private folders, kernelspecs and processes of a run
    machine.py   how fast and how quiet the machine is
    report.py    figures and ratios, as a table and JSON
    interval.py  confidence intervals, and what they say about a bound

The scripts in `benchmarks/` use the same parts, and add claims.
"""
