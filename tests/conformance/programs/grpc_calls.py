# state: grpc and its threads
# needs: grpcio
# env: GRPC_VERBOSITY=NONE

# %%
import concurrent.futures, grpc


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request.upper())


server = grpc.server(concurrent.futures.ThreadPoolExecutor(2), handlers=[Handler()])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    print(channel.unary_unary("/service/Upper")(b"hello", timeout=30))
server.stop(None).wait()
