"""The fast path of placement: nodes as arrays, and scores that are kept for each class of requests.

    snapshot.apply(changed nodes) → History: which rows changed, with their new values       changes.py
         │
    Columns: one array per property of the nodes;  Table: the same, stored row by row        columns.py
         │
    ScoreCache: class of requests → Scores of all nodes                                      score_cache.py
         │ changed rows only
    ClassScorer: filters, then weighted scorers, for the requests of one class               class_scores.py

Requests with the same amounts and conditions form a class. The filters and scorers look at each node for itself.
A cached score is therefore valid until the node changes. Without the cache the result is the same, but slower.
"""
