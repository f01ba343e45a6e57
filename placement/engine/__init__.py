"""The fast path of placement: scores that are kept for each class of requests.

    Pipeline ──> ScoreCache: class of requests → Scores of all nodes                     score_cache.py
                    │  ^
                    │  └── Snapshot: which rows have changed since then                  tables/
                    └──> ClassScorer, for these rows: filters, then weighted scorers     class_scores.py

Requests with the same amounts and conditions form a class. The filters and scorers look at each node for itself.
A cached score is therefore valid until the node changes. Without the cache the result is the same, but slower.

This package stands above `rules` and `tables`.
"""
