"""The leases on this node: the agent's own ledger, and the watches over what can end them.

ledger ── the slices that the agent has handed out, as files; it refuses a slice that is taken
manager_watch, address_watch ── has the node left its cluster? Then its leases are lost
address_report ── a pod's agent reports its address to the service itself
"""
