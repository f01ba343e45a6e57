"""Adapters to cluster managers: one folder for each, found by its entry point (`registry`)."""
