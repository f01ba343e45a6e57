# state: the filters of warnings
# in ci: yes

# %%
import warnings

for each in warnings.filters:
    print(
        each[0],
        each[1] and getattr(each[1], "pattern", each[1]),
        each[2].__name__,
        each[3] and getattr(each[3], "pattern", each[3]),
        each[4],
    )
