"""The machine's book: what the agents of all users of one machine have promised, so that nothing is promised twice.

It is a folder, not a process. Each agent has one file there, which belongs to its user:

    agent of ada ──┐   lock, read all files, check, write the own one
    agent of bob ──┼──> /run/roost/roost-1001-4f….json, roost-1002-09….json, …
    roost doctor ──┘   reads them

- `book`: `MachineBook`, which an agent asks for room
- `promise`: the promises of one agent, and the form of its file
- `places`: the folder of the book
- `lock`: the lock on that folder
- `rules`: what root allows on this machine, in `/etc/roost/machine.toml`

Needs `roost.launchers.daemon` and `roost.placement.model` only.
"""
