# state: the loop of tornado
# needs: tornado

# %%
import asyncio, tornado.ioloop

loop = tornado.ioloop.IOLoop.current()
print(type(loop).__name__, loop.asyncio_loop is asyncio.get_running_loop())
fired = asyncio.Event()
loop.call_later(0.01, fired.set)
print(await asyncio.wait_for(fired.wait(), 10))
