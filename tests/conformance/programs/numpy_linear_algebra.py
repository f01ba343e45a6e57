# state: the threads of numpy's linear algebra
# needs: numpy
# in ci: yes

# %%
import numpy, os

a = numpy.random.default_rng(1).random((600, 600))
print(
    round(float((a @ a).sum()), 3),
    round(float(numpy.linalg.svd(a[:50, :50])[1][0]), 6),
    round(float(numpy.linalg.det(a[:20, :20])), 6),
)
before = len(os.listdir("/proc/self/task"))
numpy.dot(a, a)
print(len(os.listdir("/proc/self/task")) == before)
