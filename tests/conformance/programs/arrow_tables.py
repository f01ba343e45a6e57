# state: pyarrow and its pools of threads and memory
# needs: pyarrow

# %%
import pyarrow, pyarrow.compute, pyarrow.parquet

table = pyarrow.table({"a": list(range(1000)), "b": ["x", "y"] * 500})
print(pyarrow.compute.sum(table["a"]), pyarrow.cpu_count() > 0, pyarrow.default_memory_pool().backend_name)
pyarrow.parquet.write_table(table, "a.parquet")
print(pyarrow.parquet.read_table("a.parquet", use_threads=True).num_rows)
import pyarrow.dataset

print(pyarrow.dataset.dataset("a.parquet").to_table(filter=pyarrow.compute.field("a") > 990).num_rows)
