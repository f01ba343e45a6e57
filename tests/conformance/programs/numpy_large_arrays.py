# state: memory that numpy asks for
# needs: numpy

# %%
import mmap, numpy

a = numpy.zeros(50_000_000, dtype="u1")
a[::4096] = 1
print(
    int(a.sum()),
    a.flags.aligned,
    numpy.core.multiarray.get_handler_name()
    if hasattr(numpy, "core") and not numpy.__version__.startswith("2")
    else "",
)
b = numpy.memmap("file", dtype="f8", mode="w+", shape=(100,))
b[:] = 3
b.flush()
print(float(numpy.fromfile("file").sum()))
