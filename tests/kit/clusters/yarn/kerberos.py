"""A private Kerberos realm on this machine, and a YARN cluster that always demands a ticket or a token."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from kit.clusters.hadoop_nodes import MACHINES, HadoopNodes, Refused, Rest
from roost.testing.clusters.cluster_folder import claim_network, make_folder, tail, wait_until
from roost.testing.deadlines import allow_s

REALM = "ROOST.TEST"
PROGRAMS = ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")
_FOLDERS = "/usr/sbin:/sbin:/usr/bin:/bin"
_PORT = 47_488
_TIMEOUT_S = 30.0
_CLIENT = """
[libdefaults]
default_realm = {realm}
dns_lookup_kdc = false
dns_lookup_realm = false
dns_canonicalize_hostname = false
rdns = false
udp_preference_limit = 1
[realms]
{realm} = {{
  kdc = {address}:{port}
}}
"""
_SERVER = """
[kdcdefaults]
kdc_listen = ""
kdc_tcp_listen = {address}:{port}
[realms]
{realm} = {{
  database_name = {folder}/principal
  key_stash_file = {folder}/stash
  acl_file = {folder}/acl
  supported_enctypes = aes256-cts-hmac-sha1-96:normal
}}
"""


def why_not() -> str | None:
    """Return why no realm can be set up here, in one sentence, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_FOLDERS) is None]
    if missing:
        return f"{missing[0]} is missing: apt-get install --no-install-recommends krb5-kdc krb5-admin-server krb5-user"
    try:
        import requests_gssapi  # noqa: F401
    except ImportError:
        return (
            "a Python package is missing: pip install requests-gssapi (it needs libkrb5-dev and a C compiler)"
        )
    return None


class Realm:
    """A key distribution centre that listens at one loopback address, with its database in `folder`."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.configuration = folder / "krb5.conf"
        self.keytab = folder / "keytab"
        """The keys of all services and users of the realm."""
        names = {"realm": REALM, "address": address, "port": _PORT, "folder": folder}
        self.configuration.write_text(_CLIENT.format(**names))
        (folder / "kdc.conf").write_text(_SERVER.format(**names))
        self._address = address

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which MIT's library finds this realm, and a private cache for tickets."""
        return {"KRB5_CONFIG": str(self.configuration), "KRB5CCNAME": f"FILE:{self.folder}/tickets"}

    @contextmanager
    def run(self, *principals: str) -> Iterator[None]:
        """Run the key distribution centre with these principals, and write their keys into the keytab."""
        self._call("kdb5_util", "create", "-s", "-r", REALM, "-P", "not a secret")
        for name in principals:
            self._call("kadmin.local", "-q", f"addprinc -randkey {name}@{REALM}")
            self._call("kadmin.local", "-q", f"ktadd -k {self.keytab} -norandkey {name}@{REALM}")
        with open(self.folder / "kdc.log", "ab") as log:
            centre = subprocess.Popen(
                [_find("krb5kdc"), "-n"], env=self._environment(), stdout=log, stderr=log, cwd=self.folder
            )
        try:
            wait_until(self._answers, f"the centre does not listen: {tail(self.folder / 'kdc.log')}")
            yield
        finally:
            centre.kill()
            centre.wait()

    def log_in(self, name: str) -> None:
        """Put a ticket of `name` into the private cache."""
        self._call("kinit", "-k", "-t", str(self.keytab), f"{name}@{REALM}")

    def log_out(self) -> None:
        self._call("kdestroy")

    def _call(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [_find(program), *arguments], env=self._environment(), capture_output=True, text=True,
            timeout=allow_s(_TIMEOUT_S),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {"PATH": _FOLDERS, "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"), **self.environment}

    def _answers(self) -> bool:
        try:
            socket.create_connection((self._address, _PORT), timeout=1).close()
        except OSError:
            return False
        return True


class SecureRest(Rest):
    """The REST interface of a daemon that asks for a ticket (SPNEGO)."""

    def call(self, method: str, path: str, body: object = None) -> Any:
        from requests_gssapi import HTTPSPNEGOAuth

        reply = requests.request(
            method,
            f"http://{self.address}{path}",
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            auth=HTTPSPNEGOAuth(),
            timeout=allow_s(_TIMEOUT_S),
        )
        if reply.status_code >= 400:
            raise Refused(reply.status_code, reply.text[:1000])
        return reply.json() if reply.text else None


class SecureNodes(HadoopNodes):
    """A cluster with `hadoop.security.authentication=kerberos`. The caller's environment has a ticket."""

    @property
    def rest(self) -> Rest:
        return self.rest_of("rm1")

    def rest_of(self, name: str) -> Rest:
        return SecureRest(super().rest_of(name).address)


@contextmanager
def secure_cluster(user: str) -> Iterator[tuple[SecureNodes, Realm]]:
    """Start a realm and a secure cluster. This process has a ticket of `user`, and its children inherit that."""
    network, claim = claim_network()
    folder, watcher = make_folder("krb-")
    before = dict(os.environ)
    try:
        realm = Realm(folder, f"{network}.1")
        nodes = [f"{network}.{number}" for number in (2, *range(11, 11 + len(MACHINES)))]
        services = [f"rm/{network}.2", "nm/nodes", *(f"HTTP/{node}" for node in nodes)]
        os.environ.update(realm.environment)
        with realm.run(user, *services):
            realm.log_in(user)
            variables = {"JAVA_TOOL_OPTIONS": f"-Djava.security.krb5.conf={realm.configuration}"}
            settings = _settings(realm, network)
            with SecureNodes(*MACHINES, settings=settings, network=network, environment=variables) as cluster:
                yield cluster, realm
    finally:
        os.environ.clear()
        os.environ.update(before)
        claim.close()
        watcher.communicate()


def _settings(realm: Realm, network: str) -> Mapping[str, object]:
    secret = realm.folder / "signature"
    secret.write_text("not a secret")
    web = {
        f"yarn.{daemon}.webapp.{name}": value
        for daemon in ("resourcemanager", "nodemanager")
        for name, value in {"spnego-principal": "*", "spnego-keytab-file": realm.keytab}.items()
    }
    return {
        "hadoop.security.authentication": "kerberos",
        "hadoop.security.auth_to_local": f"RULE:[2:$1@$0](rm@{REALM})s/.*/root/\nDEFAULT",
        "hadoop.http.filter.initializers": "org.apache.hadoop.security.AuthenticationFilterInitializer",
        "hadoop.http.authentication.type": "kerberos",
        "hadoop.http.authentication.token.validity": 3,  # seconds, and 10 hours by default
        "hadoop.http.authentication.kerberos.principal": "*",
        "hadoop.http.authentication.kerberos.keytab": realm.keytab,
        "hadoop.http.authentication.signature.secret.file": secret,
        "yarn.resourcemanager.principal": f"rm/{network}.2@{REALM}",
        "yarn.resourcemanager.keytab": realm.keytab,
        "yarn.nodemanager.principal": f"nm/nodes@{REALM}",
        "yarn.nodemanager.keytab": realm.keytab,
        **web,
    }


def _find(program: str) -> str:
    found = shutil.which(program, path=_FOLDERS)
    assert found is not None, f"{program} is missing"
    return found
