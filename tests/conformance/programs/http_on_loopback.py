# state: sockets and names, in a server of HTTP

# %%
import http.server, threading, urllib.request, os


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *a):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open(f"http://127.0.0.1:{server.server_port}/path", timeout=20).read())
server.shutdown()
server.server_close()
import socket

print(socket.getdefaulttimeout(), socket.gethostname() == os.uname().nodename, socket.has_ipv6)
