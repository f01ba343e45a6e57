# state: a client of dask with a cluster in the process
# needs: distributed

# %%
import dask.distributed, operator

client = dask.distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0")
print(client.submit(operator.add, 1, 2).result(timeout=60))
client.close()
client.cluster.close() if client.cluster else None
