# state: open descriptors
# in ci: yes

# %%
import collections, os, re, stat

kinds = collections.Counter()
for name in os.listdir("/proc/self/fd"):
    try:
        target = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        continue
    if target.endswith((".log", ".sqlite", ".sqlite-journal", "profile_default")) or target.startswith(
        "socket"
    ):
        continue  # the log, and the history, which a thread opens and closes
    kinds[re.sub(r":\[\d+\]", "", target)] += 1
for kind, count in sorted(kinds.items()):
    print(kind, count)
