"""The zygote: a warm process that forks ipykernels. It runs in the kernel's own Python.

    agent ── request + descriptors ────> zygote ── forks in advance ──> spare ── becomes ──> kernel
      ^                                     (main, loop, memory, rehearsal)  (standby, kernel, ending)
      └─────────────────────── pid, then ready, on a socket ────────────────────────────────────┘

The kernel's environment need not contain roost. Therefore these files import the standard library, what ipykernel
brings, and each other, but nothing else of roost. `main` has the protocol.
"""
