# state: the machinery that starts and joins threads
# in ci: yes

# %%
import queue, threading

found = queue.Queue()
threads = [threading.Thread(target=found.put, args=(n,)) for n in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(found.queue))
barrier, done = threading.Barrier(3), []
threads = [threading.Thread(target=lambda n=n: (barrier.wait(), done.append(n))) for n in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(done), threading.stack_size())
