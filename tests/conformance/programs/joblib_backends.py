# state: joblib with threads and with processes
# end: killed
# needs: joblib

# %%
import joblib, os


def work(n):
    return n * n


for backend in ("threading", "loky", "multiprocessing"):
    print(backend, joblib.Parallel(2, backend=backend)(joblib.delayed(work)(n) for n in range(4)))
print(joblib.cpu_count() == len(os.sched_getaffinity(0)), joblib.hash([1, 2]))
