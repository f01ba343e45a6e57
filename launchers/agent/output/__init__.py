"""The journal: what each kernel has published, bounded, for clients that come back.

subscription ──→ journal ──→ journal_file, for the agent after this one
"""
