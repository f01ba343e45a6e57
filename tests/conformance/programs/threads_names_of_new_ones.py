# state: the counter in the names of new threads
# in ci: yes

# %%
import threading

thread = threading.Thread(target=int)
print(thread.name, thread.daemon)
thread.start()
thread.join()


def work():
    pass


print(threading.Thread(target=work).name)
