"""The scheduler, which admits, queues, places, leases and launches kernels; its service, its client, `roost`."""
