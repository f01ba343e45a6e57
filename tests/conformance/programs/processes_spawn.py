# state: multiprocessing with spawn
# end: killed
# in ci: yes

# %%
import multiprocessing, operator, os

with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(
        pool.starmap(operator.add, [(1, 2), (3, 4)]),
        pool.apply(os.getcwd) == os.getcwd(),
        pool.apply(eval, ("__import__('sys').argv[0]",)) != "",
    )
