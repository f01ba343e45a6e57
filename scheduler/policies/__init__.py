"""The placement policies of a scheduler, by name.

    catalog.py          all policies: shipped ones, the operator's, those of installed packages and of clients
    loader.py           imports a policy from a name, a file or a module
    sandbox.py          runs foreign policies in a thread, with a deadline, and checks their decisions
    pickling.py         packs a client's policy for the service, and unpacks it there
    recent_requests.py  remembers requests, for policies that adapt to the workload
    explain.py          what `roost explain` adds to a decision
    offline.py          decisions on a saved snapshot, without a service

A foreign policy is code that roost does not ship. If it fails, `balanced` places the kernel instead.
"""
