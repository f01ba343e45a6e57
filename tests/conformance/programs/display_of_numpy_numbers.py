# state: IPython's printers for the numbers of numpy
# needs: numpy

# %%
import numpy

numpy.float64(1.23456789)

# %%
%precision 3
numpy.float64(1.23456789)

# %%
[numpy.float32(1.23456789), numpy.array([1.23456789])]
