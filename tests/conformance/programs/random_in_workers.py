# state: the random numbers of processes that a kernel forks

# %%
import multiprocessing, random


def draw(_):
    return random.random()


with multiprocessing.get_context("fork").Pool(2) as pool:
    drawn = pool.map(draw, range(4), chunksize=1)
print(len(set(drawn)), random.random() not in drawn)
