# state: polars and its pool of threads
# needs: polars

# %%
import polars

frame = polars.DataFrame({"a": range(10_000), "b": ["x", "y"] * 5_000})
print(
    frame.lazy().group_by("b").agg(polars.col("a").sum()).sort("b").collect().rows(),
    polars.thread_pool_size() > 0,
)
frame.write_parquet("a.parquet")
print(polars.read_parquet("a.parquet").shape)
