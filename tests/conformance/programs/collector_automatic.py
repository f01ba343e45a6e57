# state: the automatic collection of new objects

# %%
import gc, weakref


class Node:
    pass


node = Node()
node.self = node
reference = weakref.ref(node)
del node
made = 0
while reference() is not None and made < 3_000_000:
    cycle = []
    cycle.append(cycle)
    made += 1
print(reference() is None)
