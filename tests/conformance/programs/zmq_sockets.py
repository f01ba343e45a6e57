# state: ZeroMQ, which must not be used across a fork
# needs: pyzmq

# %%
import threading, zmq

context = zmq.Context.instance()
print(context.closed, context.get(zmq.IO_THREADS), zmq.Context._instance is context)
server = context.socket(zmq.REP)
port = server.bind_to_random_port("tcp://127.0.0.1")
client = context.socket(zmq.REQ)
client.connect(f"tcp://127.0.0.1:{port}")
client.send(b"a")
print(server.recv())
server.send(b"b")
print(client.recv())
client.close(0)
server.close(0)
import zmq.asyncio

print(type(zmq.asyncio.Context.instance()).__name__)
