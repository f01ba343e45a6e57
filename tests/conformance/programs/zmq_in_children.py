# state: ZeroMQ in processes that a cell forks
# needs: pyzmq

# %%
import multiprocessing, zmq


def work(n):
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.bind("inproc://a")
    other = context.socket(zmq.PAIR)
    other.connect("inproc://a")
    other.send(b"%d" % n)
    got = socket.recv()
    socket.close(0)
    other.close(0)
    context.term()
    return got


with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(3)))
