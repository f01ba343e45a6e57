# state: concurrent.futures with threads
# in ci: yes

# %%
import concurrent.futures, threading

with concurrent.futures.ThreadPoolExecutor(3) as pool:
    print(
        list(pool.map(abs, range(-3, 0))),
        sorted({t.name for t in threading.enumerate() if "ThreadPool" in t.name})[:1],
    )
print(concurrent.futures.thread._shutdown, len(concurrent.futures.thread._threads_queues))
