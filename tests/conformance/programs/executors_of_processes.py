# state: concurrent.futures with processes

# %%
import concurrent.futures, multiprocessing

with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    print(list(pool.map(abs, range(-3, 0))))
