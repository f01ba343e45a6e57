"""The warm processes from which kernels are forked.

    Starter (`launch`) ──> ZygotePool ──> ZygoteStarter ──> launchers/zygote              zygote_pool, zygote_start
                             │  ^
                             │  └── read_report: a forked kernel's pid; does it serve?    fork_report
                             └── Fingerprint: the files that a zygote has read            fingerprint

`kernel_command` reads a kernel's command, and names the programs for which a fork can stand. `zygote_key` says which
starts have a zygote in common. `kernel_world` lists all that makes a kernel's world, and how a fork gets each part.

A zygote runs in the kernel's own Python. The pool checks its fingerprint while a fork gets ready, and ends the zygote
if a file has changed. If no zygote can serve a launch, `launch` executes the kernel, and the pool prepares a zygote for
the next one.
"""
