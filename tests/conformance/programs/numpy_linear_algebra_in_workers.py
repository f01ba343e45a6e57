# state: numpy's linear algebra in child processes
# needs: numpy

# %%
import multiprocessing, numpy

a = numpy.ones((300, 300))
a @ a


def work(n):
    return float((a @ a)[0, n])


with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(4)))
