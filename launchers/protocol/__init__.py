"""What crosses a process border: messages, JSON encoding, encrypted RPC, the agent's client."""
