# state: tracemalloc
# in ci: yes

# %%
import tracemalloc

print(tracemalloc.is_tracing(), tracemalloc.get_traceback_limit())
tracemalloc.start(5)
data = [bytes(1000) for _ in range(100)]
snapshot = tracemalloc.take_snapshot()
print(sum(s.size for s in snapshot.statistics("lineno") if s.size > 50_000) > 90_000)
tracemalloc.stop()
