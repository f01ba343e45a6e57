"""The machine's book: what the agents of all users of one machine have promised, so that nothing is promised twice.

It is a folder, not a process. Each promise is a file that belongs to the user whose agent has made it:

    agent of ada ──┐   lock, read all files, check, write
    agent of bob ──┼──> /run/roost/1001-4f….json, 1002-09….json, …
    roost doctor ──┘   reads them

- `book`: `MachineBook`, which an agent asks for room
- `promise`: one promise, and the form of its file
- `folder_reader`: the promises in one folder, as they were read last
- `places`: the folder of the book
- `lock`: the lock on that folder
- `rules`: what root allows on this machine, in `/etc/roost/machine.toml`
- `machine_id`: the identity of the machine, for those who reach it by name
- `others`: a watch that tells when others give something back

Every file in the folder is input from a stranger. Needs `roost.launchers.daemon` and `roost.placement.model` only.
"""
