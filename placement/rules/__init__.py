"""The rules that policies are made of. They read a request and a snapshot, and nothing else.

    Filter ── refuses nodes, each for one reason                     filters.py
       └─ Refusal, RefusalGroup: the reasons, now or never           refusals.py
    Scorer ── rates nodes; a higher score is better                  scorers.py
       └─ scorers that keep room for later requests                  packing.py
    Workload ── the summary of recent requests, for such scorers     workload.py

`pipeline.py` and `engine/` call the rules, and `shipped_policies.py` chooses them. This package stands above `tables`.
"""
