# state: the stack of new threads
# in ci: yes

# %%
import sys, threading


def depth(n):
    return n if n == 0 else 1 + depth(n - 1)


result = []


def work():
    result.append(depth(900))


threading.stack_size(4 << 20)
thread = threading.Thread(target=work)
thread.start()
thread.join()
threading.stack_size(0)
print(result)
