# state: __main__ as child processes see it

# %%
import __main__, multiprocessing.spawn, sys

data = multiprocessing.spawn.get_preparation_data("name")
print(sorted(data), data.get("init_main_from_path", data.get("init_main_from_name")), data["sys_argv"][:2])
print(
    __main__.__spec__,
    getattr(__main__, "__file__", None),
    __main__.__name__,
    __main__.__doc__,
    __main__.__package__,
)
