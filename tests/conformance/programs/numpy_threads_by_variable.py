# state: how many threads linear algebra has
# needs: numpy, threadpoolctl
# env: OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1

# %%
import numpy, threadpoolctl

print([(each["internal_api"], each["num_threads"]) for each in threadpoolctl.threadpool_info()])
