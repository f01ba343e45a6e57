# state: handlers that run at the end
# in ci: yes

# %%
import atexit, os

for number in range(3):
    atexit.register(lambda number=number: os.write(1, f"handler {number}\n".encode()))

# %% restart


# %% client
print("a new kernel has no handlers")

# %%
import atexit

print(atexit._ncallbacks())
atexit.register(lambda: open("mark", "w").write("ended"))
