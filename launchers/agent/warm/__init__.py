"""The warm processes from which kernels are forked.

zygote_pool ──→ zygote_start ──→ launchers/zygote, in the kernel's own Python
    │
    ├── fingerprint ── the files and settings that a zygote has read; if they change, it is replaced
    │       └── folder_watch ── has something in these folders changed?
    ├── fork_report ── what a zygote reports of a fork
    └── learnt_preloads ── what recent kernels have imported, to be preloaded
"""
