"""The rules that policies are made of. They read a request and a snapshot, and nothing else.

Filter ── refuses nodes, each for one reason                     filters.py
   └─ Refusal, RefusalGroup: the reasons, now or never           refusals.py
Scorer ── rates nodes, from 0 to 1; a higher score is better     scorers.py
   └─ scorers that pack by what recent requests asked for        packing.py
Workload ── the summary of recent requests                       workload.py
"""
