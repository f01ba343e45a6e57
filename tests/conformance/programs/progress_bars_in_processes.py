# state: tqdm's locks in child processes
# needs: tqdm

# %%
import multiprocessing, tqdm


def work(n):
    with tqdm.tqdm.get_lock():
        return n


with multiprocessing.get_context("fork").Pool(
    2, initializer=tqdm.tqdm.set_lock, initargs=(tqdm.tqdm.get_lock(),)
) as pool:
    print(pool.map(work, range(4)))
