"""The cases in which a kernel gets encryption keys, and those in which it gets none."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.provisioners import encryption
from roost.provisioners.encryption import check_channels, protect_channels
from roost.scheduler.errors import ConfigError, LaunchError
from roost.scheduler.messages import Connection

IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
OTHER = ["R", "--slave", "-e", "IRkernel::main()"]


def manager(
    *,
    declares: bool = False,
    transport: str = "tcp",
    jupyters: str = "disabled",
    key: bytes | None = None,
    ip: str = "127.0.0.1",
) -> Any:
    return SimpleNamespace(
        ip=ip, transport=transport, transport_encryption=jupyters, curve_publickey=key, curve_secretkey=key,
        _kernel_supports_curve_encryption=lambda: declares,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "jupyters", "transport", "declares", "argv", "is_encrypted"),
    [
        ("auto", "disabled", "tcp", True, OTHER, True),
        ("auto", "disabled", "tcp", False, IPYKERNEL, True),
        ("auto", "disabled", "ipc", True, IPYKERNEL, False),
        ("auto", "auto", "ipc", True, IPYKERNEL, True),
        ("never", "disabled", "tcp", True, IPYKERNEL, False),
        ("never", "auto", "tcp", True, IPYKERNEL, False),
        ("never", "required", "tcp", True, IPYKERNEL, True),
        ("required", "disabled", "ipc", True, IPYKERNEL, True),
    ],
)
def test_which_kernels_get_keys(
    monkeypatch: pytest.MonkeyPatch,
    wish: str,
    jupyters: str,
    transport: str,
    declares: bool,
    argv: list[str],
    is_encrypted: bool,
) -> None:
    monkeypatch.setattr(encryption, "find_ipykernel_version", lambda _: (7, 3))
    km = manager(declares=declares, transport=transport, jupyters=jupyters)
    assert protect_channels(km, argv, wish, is_local=True) == ""
    assert (km.curve_publickey is not None) is is_encrypted
    assert (km.curve_secretkey is not None) is is_encrypted


def test_keys_are_kept_for_a_restart() -> None:
    km = manager(declares=True, key=b"mine")
    assert protect_channels(km, IPYKERNEL, "auto", is_local=True) == ""
    assert km.curve_publickey == b"mine"


def test_a_kernel_without_encryption_causes_a_warning() -> None:
    km = manager()
    told = protect_channels(km, OTHER, "auto", is_local=True)
    assert "supported_encryption" in told
    assert "prevent that with" in told
    assert "ipc" not in protect_channels(km, OTHER, "auto", is_local=False), (
        "no way out for another machine's"
    )
    assert km.curve_publickey is None


@pytest.mark.parametrize(("wish", "jupyters"), [("required", "disabled"), ("auto", "required")])
def test_required_encryption_refuses_a_kernel_without_it(wish: str, jupyters: str) -> None:
    with pytest.raises(ConfigError, match="required"):
        protect_channels(manager(jupyters=jupyters), OTHER, wish, is_local=True)


@pytest.mark.parametrize(
    ("argv", "wish", "found", "says"),
    [
        (
            OTHER,
            "auto",
            (),
            "but its kernelspec does not declare it (metadata.supported_encryption = ['curve']).",
        ),
        (IPYKERNEL, "auto", (6, 29), "but its ipykernel 6.29 cannot: upgrade it to 7.3 or newer."),
        (IPYKERNEL, "auto", (), "on this machine: if it is 7.3 or newer there, declare it in the kernelspec"),
        (IPYKERNEL, "never", (7, 3), "without encryption: leave out encrypt = 'never'."),
    ],
)
def test_a_backend_that_requires_encryption_refuses_a_kernel_without_it(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], wish: str, found: tuple[int, ...], says: str
) -> None:
    monkeypatch.setattr(encryption, "find_ipykernel_version", lambda _: found)
    for transport in ("tcp", "ipc"):
        km = manager(transport=transport)
        with pytest.raises(ConfigError, match=r"^The backend demo starts no kernel without") as caught:
            protect_channels(km, argv, wish, is_local=False, requiring_backend="demo")
        assert says in str(caught.value)
        assert km.curve_publickey is None


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_backend_that_requires_encryption_gets_keys(transport: str) -> None:
    km = manager(declares=True, transport=transport)
    assert protect_channels(km, OTHER, "auto", is_local=False, requiring_backend="demo") == ""
    assert km.curve_publickey is not None


@pytest.mark.parametrize(("ip", "is_local"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_the_warning_names_an_old_ipykernel_on_another_machine(
    monkeypatch: pytest.MonkeyPatch, ip: str, is_local: bool
) -> None:
    monkeypatch.setattr(encryption, "find_ipykernel_version", lambda _: (6, 29))
    km = manager(ip=ip)
    assert "6.29 cannot: upgrade" in protect_channels(km, IPYKERNEL, "auto", is_local=is_local)
    assert km.transport == "tcp"


def test_an_old_ipykernel_on_this_machine_gets_a_private_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "find_ipykernel_version", lambda _: (6, 29))
    km = manager()
    assert protect_channels(km, IPYKERNEL, "auto", is_local=True) == ""
    assert (km.transport, km.ip, km.curve_publickey) == ("ipc", "kernel-ipc", None)
    assert protect_channels(km, IPYKERNEL, "auto", is_local=True) == ""
    assert km.transport == "ipc"


def test_a_running_server_sees_an_upgrade(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    for version, found in (("6.29.0", (6, 29)), ("7.3.1", (7, 3))):
        for old in tmp_path.glob("lib/python3.12/site-packages/*"):
            old.rmdir()
        (tmp_path / f"lib/python3.12/site-packages/ipykernel-{version}.dist-info").mkdir(parents=True)
        assert encryption.find_ipykernel_version(str(python)) == found


@pytest.mark.parametrize(
    ("ip", "transport", "public_key", "is_local", "is_right"),
    [
        ("127.0.0.1", "tcp", "a key", True, True),
        ("10.0.0.7", "tcp", "a key", False, True),
        ("10.0.0.7", "tcp", "a key", True, False),
        ("127.0.0.1", "tcp", None, True, False),
        ("/run/docker.sock", "ipc", "a key", True, False),
        ("/run/docker.sock", "ipc", "a key", False, False),
    ],
)
def test_another_users_service_names_encrypted_channels_only(
    ip: str, transport: str, public_key: str | None, is_local: bool, is_right: bool
) -> None:
    connection = Connection(ip=ip, transport=transport, curve_publickey=public_key)
    if is_right:
        check_channels(connection, is_local=is_local)
    else:
        with pytest.raises(LaunchError, match="names channels"):
            check_channels(connection, is_local=is_local)
