# state: the collection of cycles and of what refers to a preload

# %%
import gc, json, weakref


class Node:
    pass


node = Node()
node.self = node
node.module = json
reference = weakref.ref(node)
del node
gc.collect()
print(reference() is None, gc.is_tracked({}), gc.is_tracked([]))
for _ in range(1000):
    cycle = Node()
    cycle.self = cycle
del cycle
reference = [Node() for _ in range(2000)]
print(gc.collect() >= 0)
