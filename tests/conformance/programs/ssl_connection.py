# state: OpenSSL, in a connection
# needs: cryptography

# %%
import datetime, pathlib, socket, ssl, threading
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
now = datetime.datetime.now(datetime.timezone.utc)
certificate = (
    x509.CertificateBuilder()
    .subject_name(name)
    .issuer_name(name)
    .public_key(key.public_key())
    .serial_number(1)
    .not_valid_before(now - datetime.timedelta(1))
    .not_valid_after(now + datetime.timedelta(1))
    .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    .sign(key, hashes.SHA256())
)
_ = pathlib.Path("key").write_bytes(
    key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
)
_ = pathlib.Path("certificate").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

# %%
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain("certificate", "key")
client = ssl.create_default_context(cafile="certificate")
ours, theirs = socket.socketpair()


def serve():
    with server.wrap_socket(theirs, server_side=True) as stream:
        stream.sendall(stream.recv(10).upper())


thread = threading.Thread(target=serve)
thread.start()
with client.wrap_socket(ours, server_hostname="localhost") as stream:
    stream.sendall(b"hello")
    print(stream.recv(10), stream.version())
thread.join()
