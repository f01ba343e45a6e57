"""Parts of roost that start no kernels: a scheduler on fake nodes, a cluster manager, a service, a
client, and clients' policies."""
