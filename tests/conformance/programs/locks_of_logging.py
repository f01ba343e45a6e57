# state: the locks of logging and of its handlers
# in ci: yes

# %%
import logging, sys, threading

handler = logging.StreamHandler(sys.stdout)
logger = logging.getLogger("fork")
logger.addHandler(handler)
logger.setLevel("INFO")
thread = threading.Thread(target=logger.info, args=("from a thread",), daemon=True)
thread.start()
thread.join(5)
print(thread.is_alive())
print(logging._lock.acquire(blocking=False))
logging._lock.release()
print([h.lock.acquire(blocking=False) for h in logging.root.handlers])
