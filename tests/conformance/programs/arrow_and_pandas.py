# state: conversions between pyarrow and pandas
# needs: pyarrow, pandas

# %%
import pandas, pyarrow

frame = pandas.DataFrame({"a": range(5)})
frame.to_parquet("a.parquet")
print(
    pandas.read_parquet("a.parquet").equals(frame), pyarrow.Table.from_pandas(frame).to_pandas().equals(frame)
)
