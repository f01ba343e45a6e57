"""The scheduler as a process of its own: its server and its operations."""
