"""The kernels of an agent: launched, watched, signalled and stopped.

    Agent <── on_launched, on_exited ──┐
      │                                │
      └──> Kernels ──> Starter ────────┤                                                  kernels, start
             │  ^         │
             ├──│──> LaunchChanges: limits, addresses, environment and devices            launch_changes
             │  │         ├──> a fork from a zygote (`warm`), with sockets that listen
             │  │         └──> or exec of the kernelspec's argv, with claimed ports
             │  ├── the file with the kernel's ports and keys                             connection_file
             │  └── Reaper: exit codes, and what kernels leave behind                     child_reaper
             └──> Journal (`output`), and a folder with files for the next agent

`place` has the differences between the agent of a node and the agent in a pod.

Only the files above this folder call this room. It stands above all other rooms.
"""
