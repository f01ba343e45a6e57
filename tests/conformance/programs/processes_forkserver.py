# state: multiprocessing with a server of forks
# end: killed
# in ci: yes

# %%
import multiprocessing, operator

with multiprocessing.get_context("forkserver").Pool(1) as pool:
    print(pool.starmap(operator.add, [(1, 2), (3, 4)]))
