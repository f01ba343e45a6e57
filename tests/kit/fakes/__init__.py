"""Parts of roost that start no kernels: a scheduler on fake nodes, a service, a client, and clients' policies."""
