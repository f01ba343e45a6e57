# state: settings of numpy
# needs: numpy
# in ci: yes

# %%
import numpy

print(numpy.geterr(), numpy.get_printoptions(), numpy.geterrcall())
print(numpy.array([1.123456789, 2]), numpy.arange(2000))
numpy.array([1.0]) / 0

# %%
import warnings

print([str(each[:3]) for each in warnings.filters if "numpy" in str(each)])
