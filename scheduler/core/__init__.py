"""The scheduler itself: queue, starts, kernel table, reconciliation."""
