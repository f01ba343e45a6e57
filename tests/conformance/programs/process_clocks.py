# state: clocks of the process

# %%
import os, resource, time

print(
    time.process_time() < 60,
    time.thread_time() < 60,
    time.perf_counter() > 0,
    resource.getrusage(resource.RUSAGE_SELF).ru_utime < 60,
)
import psutil

print(abs(time.time() - psutil.Process().create_time()) < 600)
print(sum(os.times()[2:4]) < 1)
