# state: multiprocessing with fork
# in ci: yes

# %%
import multiprocessing, os

context = multiprocessing.get_context("fork")


def square(x):
    return x * x


with context.Pool(2) as pool:
    print(pool.map(square, range(5)))
queue = context.Queue()
process = context.Process(target=queue.put, args=({"a": 1},))
process.start()
print(queue.get(timeout=30))
process.join()
print(process.exitcode)
print(
    multiprocessing.current_process().name,
    multiprocessing.parent_process(),
    multiprocessing.active_children(),
)
