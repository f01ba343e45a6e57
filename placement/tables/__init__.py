"""All nodes at one instant, as arrays: what filters and scorers read.

snapshot.apply(changed nodes) → History: which rows changed, with their new values       changes.py
     │
Snapshot: immutable, with a version; each node is a row                                  snapshot.py
     │
Columns: one array per property of the nodes;  Table: the same, stored row by row        columns.py
"""
