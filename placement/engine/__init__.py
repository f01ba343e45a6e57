"""The fast path of placement: scores that are kept for each class of requests.

    Snapshot ── its columns, and which rows changed (``tables``)
         │
    ScoreCache: class of requests → Scores of all nodes                                      score_cache.py
         │ changed rows only
    ClassScorer: filters, then weighted scorers, for the requests of one class               class_scores.py

Requests with the same amounts and conditions form a class. The filters and scorers look at each node for itself.
A cached score is therefore valid until the node changes. Without the cache the result is the same, but slower.
"""
