"""Parts of roost that start no kernels: a scheduler on fake nodes, a cluster manager, a service, a
client, clients' policies, connections without sockets, and an event loop in virtual time."""
