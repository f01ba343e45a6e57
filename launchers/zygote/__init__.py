"""The zygote: a warm process that forks ipykernels. It runs in the kernel's own Python.

    agent ── request + descriptors ────> zygote ── forks in advance ──> spare ── becomes ──> kernel
      ^                                  (main, loop)                   (standby)            (kernel, ending)
      └─────────────────────── pid, then ready, on a socket ────────────────────────────────────┘

`main` is the program, and has the protocol. `loop` prepares once and then forks. For this it uses
- `launch_packet`: the receiver of packets with descriptors
- `rehearsal`: a trial start, which shows what a kernel imports and which memory it writes
- `learnt`: packages that recent kernels have imported, and a kernel's report of its imports
- `memory`, `immortal`: how kernels share the zygote's memory
- `startup`: the code that an interpreter runs before the zygote
- `shown_process`: the command line and variables that the system shows for a process
- `interpreter_name`: the name of the kernel's interpreter, which may be another one than the zygote's
- `page_out`: how an idle kernel moves its memory to the swap

The kernel's environment need not contain roost. Therefore these files import the standard library, what ipykernel
brings, and each other, but nothing else of roost.
"""
