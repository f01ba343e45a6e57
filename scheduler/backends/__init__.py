"""The backends: one folder for each. The module `registry` finds a backend by its entry point."""
