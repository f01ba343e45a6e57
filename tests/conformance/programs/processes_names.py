# state: the counters and the state of multiprocessing

# %%
import multiprocessing

process = multiprocessing.get_context("fork").Process(target=int)
print(
    process.name,
    multiprocessing.current_process()._config.get("semprefix"),
    multiprocessing.get_start_method(allow_none=True),
)
print(multiprocessing.current_process().authkey is not None, multiprocessing.current_process().daemon)
