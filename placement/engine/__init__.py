"""The fast path of placement: nodes as columns, and scores kept per class of requests."""
