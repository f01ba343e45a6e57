"""The zygote: a warm process that forks ipykernels. It runs in the kernel's own Python.

    agent ── request + descriptors ────> zygote ── forks in advance ──> spare ── becomes ──> kernel
      ^                                  (main, loop)                   (standby)            (kernel, ending)
      └─────────────────────── pid, then ready, on a socket ────────────────────────────────────┘

`main` is the program, and has the protocol. `loop` prepares once and then forks. For this it uses
- `launch_packet`: the receiver of packets with descriptors
- `rehearsal`: a trial start, which shows what a kernel imports and which memory it writes
- `memory`, `immortal`: how kernels share the zygote's memory
- `startup`: the code that an interpreter runs before the zygote
- `shown_process`: the command line and variables that the system shows for a process

The kernel's environment need not contain roost. Therefore these files import the standard library, what ipykernel
brings, and each other, but nothing else of roost.
"""
