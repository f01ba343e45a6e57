"""The limits: each kernel gets the memory and the CPUs of its lease.

limits ──→ confinement, one for each lease ──→ cgroups         where this agent may make control groups
                │                     └──────→ the kernel's processes, one by one, elsewhere
                └──→ usage       what each kernel uses of CPUs, memory and memory of GPUs
page_out ── idle kernels move their memory to the swap
"""
