# state: memray
# needs: memray

# %%
import memray

with memray.Tracker("trace.bin"):
    data = [bytes(10_000) for _ in range(1000)]
reader = memray.FileReader("trace.bin")
print(
    reader.metadata.has_native_traces,
    sum(each.size for each in reader.get_high_watermark_allocation_records(merge_threads=True)) > 9_000_000,
)
