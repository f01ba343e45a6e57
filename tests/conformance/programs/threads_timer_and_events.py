# state: clocks and conditions of threads

# %%
import threading, time

event = threading.Event()
timer = threading.Timer(0.05, event.set)
timer.start()
print(event.wait(10))
condition = threading.Condition()
with condition:
    print(condition.wait(0.01))
print(threading.Semaphore(2).acquire(timeout=1))
