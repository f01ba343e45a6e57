"""The certificates of a cluster, and kubeconfig files for its users. RBAC sees a user's name and groups."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ADMINISTRATORS = "system:masters"
"""The group that may do everything."""
_LIFETIME = datetime.timedelta(days=30)
_IS_AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)
_SIGNS = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


class Authority:
    """The certificate authority of the cluster in `folder`. The first object makes the key; later ones read it."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self._key_file = folder / "ca.crt", folder / "ca.key"
        if not self._key_file.exists():
            key = write_key(self._key_file)
            name = _name("kubelets")
            builder = _builder(name, name, key).add_extension(_IS_AUTHORITY, critical=True)
            builder = builder.add_extension(_SIGNS, critical=True)
            identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            builder = builder.add_extension(identifier, critical=False)
            self.certificate.write_bytes(_pem(builder.sign(key, hashes.SHA256())))
        self._key = serialization.load_pem_private_key(self._key_file.read_bytes(), None)
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)
        self._issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes()).subject

    def issue(self, file: Path, user: str, groups: Sequence[str] = (), addresses: Sequence[str] = ()) -> None:
        """Write a certificate and its key to `file`.crt and `file`.key. With `addresses` it is a server's."""
        key = write_key(file.with_suffix(".key"))
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = _builder(_name(user, groups), self._issuer, key).add_extension(identifier, critical=False)
        if addresses:
            names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
            names += [x509.DNSName("kubernetes.default.svc")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        file.with_suffix(".crt").write_bytes(_pem(certificate))

    def write_kubeconfig(self, file: Path, server: str, user: str, groups: Sequence[str] = ()) -> Path:
        """Write a kubeconfig file for a user, with a certificate of its own beside it. Return the file."""
        pair = file.with_name(f"{file.name}-client")
        self.issue(pair, user, groups)
        certificate = {
            "client-certificate": str(pair.with_suffix(".crt")),
            "client-key": str(pair.with_suffix(".key")),
        }
        cluster = {"server": server, "certificate-authority": str(self.certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "kubelets",
            "clusters": [{"name": "kubelets", "cluster": cluster}],
            "users": [{"name": user, "user": certificate}],
            "contexts": [{"name": "kubelets", "context": {"cluster": "kubelets", "user": user}}],
        }
        file.write_text(json.dumps(config, indent=1))
        return file


def write_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Make a private key and write it to a file that only its owner reads."""
    key = ec.generate_private_key(ec.SECP256R1())
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # a clock may be set back a little
        .not_valid_after(now + _LIFETIME)
    )


def _name(user: str, groups: Sequence[str] = ()) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
