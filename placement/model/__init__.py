"""The values that every process speaks: requests, nodes and devices, as JSON and as text for people.

    Request ── what a kernel asks for                                          request.py
    Node, Device ── what a machine has, has promised and uses                  node.py
    NodeType ── a kind of node that the cluster could start                    node_type.py
        │  checked when they are made                                          validation.py
        ├─ the GPUs that an application may use, by its variables                  visible_gpus.py
        ├─ strict JSON between processes, lenient for answers                  json_codec.py
        ├─ amounts and sizes in sentences                                      format.py
        └─ amounts of memory, as people write them                             memory_size.py

`LastEntries` is a dict that forgets its oldest entries (last_entries.py).

This package is the ground floor. It imports the standard library only, so an agent can be sent to a node without the
rest of placement.
"""

from __future__ import annotations

from .node import EPSILON, Device, Node
from .node_type import NodeType
from .request import NODE_LABEL, Request

__all__ = ["EPSILON", "NODE_LABEL", "Device", "Node", "NodeType", "Request"]
