# state: the locks of the C library for names of hosts

# %%
import concurrent.futures, socket

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(
        pool.map(
            lambda _: socket.getaddrinfo("localhost", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4], range(8)
        )
    )
print(set(found))
