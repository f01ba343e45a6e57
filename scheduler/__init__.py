"""The scheduler: admits, queues, places, leases and launches; its service, its client, the `roost` command."""
