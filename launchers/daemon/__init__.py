"""Background processes: the service, the agent, and the tools that both need.

    application ──ensure(folder)──> start.lock ──> is lock free? ──yes──> start the daemon, wait for its announcement
                                                        └────no──> read ready.json ──> connect
    daemon ──hold(folder)──> lock ──announce──> ready.json

`daemon` runs one process per folder. `private_files` makes folders and files that no other user can read. `file_input`
and `json_text` read files as input from a stranger. `process` identifies processes by pid and start time. `world`
identifies the state that no process can choose for its children. `open_files` raises the limit of open files. `inotify`
reports changes of files and folders, and `tcp_listeners` who listens on a port. `group_guard` ends a process group with
its owner. `tasks` has background tasks, threads, pauses and timers for asyncio, and `supervision` runs tasks again
after errors.

This package is a ground floor: it imports nothing else of roost. Clients call `ensure`, and services and agents `hold`.
"""
