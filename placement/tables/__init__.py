"""All nodes at one instant, as arrays: what filters and scorers read.

    backend ──> Snapshot.of, Snapshot.apply(changed nodes)                                      snapshot.py
                    ├──> Columns: one array per property of the nodes; each node is a row       columns.py
                    └──> History of Changes: which rows changed, and their new values           changes.py
                            └──> a Table: columns that follow the changes (`engine`)            columns.py

A snapshot is immutable and has a version. This package stands above `model`.
"""
