"""Background processes: one instance per folder, private files, process identity."""
