# state: shared memory and its tracker
# end: killed

# %%
from multiprocessing import shared_memory, resource_tracker

memory = shared_memory.SharedMemory(create=True, size=100)
memory.buf[:3] = b"abc"
print(bytes(shared_memory.SharedMemory(memory.name).buf[:3]))
memory.close()
memory.unlink()
