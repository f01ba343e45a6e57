"""The kernels: launched, watched, signalled and stopped.

kernels ──→ start ──→ a fork from a zygote (``warm``)
    │         └─────→ exec of the kernelspec's argv, with ports of this machine
    ├── launch_changes ── what a launch needs on this node: addresses, environment, devices
    └── child_reaper ── exit codes, and what kernels leave behind
"""
