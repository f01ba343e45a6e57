"""The pure parts of the Kubernetes cluster: addresses, labels, certificates, images and the names in the cache."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from kit.clusters.kubelets import Machine, build, containerd, image
from kit.clusters.kubelets.credentials import Authority
from kit.clusters.kubelets.network import Network


def test_each_node_of_each_cluster_has_addresses_of_its_own() -> None:
    networks = [Network(201), Network(202)]
    assert (
        len(
            {
                address
                for each in networks
                for index in (1, 2)
                for address in (each.node(index), each.pods(index))
            }
        )
        == 8
    )
    assert networks[0].node(2) == "10.201.0.12"
    assert networks[0].pods(2) == "10.201.2.0/24"
    assert networks[0].device != networks[1].device


def test_a_machine_with_gpus_has_the_labels_of_nvidias_feature_discovery() -> None:
    machine = Machine(gpus=2, gpu_model="Tesla-T4", gpu_memory_mib=15360, labels={"zone": "b"})
    assert machine.all_labels == {
        "nvidia.com/gpu.count": "2",
        "nvidia.com/gpu.product": "Tesla-T4",
        "nvidia.com/gpu.memory": "15360",
        "zone": "b",
    }
    assert Machine(labels={"zone": "b"}).all_labels == {"zone": "b"}


def test_a_kubeconfig_names_its_user_and_groups(tmp_path: Path) -> None:
    Authority(tmp_path)
    file = Authority(tmp_path).write_kubeconfig(
        tmp_path / "alice.kubeconfig", "https://10.201.0.1", "alice", ["users", "staff"]
    )
    user = json.loads(file.read_text())["users"][0]["user"]
    certificate = x509.load_pem_x509_certificate(Path(user["client-certificate"]).read_bytes())
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    certificate.verify_directly_issued_by(authority)
    subject = certificate.subject
    assert [each.value for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["alice"]
    groups = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert {each.value for each in groups} == {"users", "staff"}
    assert Path(user["client-key"]).stat().st_mode & 0o777 == 0o600


def test_an_image_holds_each_name_once_and_everybody_may_read_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("text")
    source.chmod(0o700)
    os.utime(source, (1, 1))
    layer = image.Layer(tmp_path / "layer")
    layer.add_text("a/b/text", "text")
    layer.add(source, "/a/b/program")
    layer.add(source, "a/b/program")
    layer.add_link("bin", "a/b")
    layer.write(tmp_path / "image.tar", "roost-none:1", {"Cmd": ["a"]})
    assert not (tmp_path / "layer").exists()
    with tarfile.open(tmp_path / "image.tar") as archive:
        file = archive.extractfile("layer.tar")
        assert file is not None
        with tarfile.open(fileobj=file) as content:
            entries = content.getmembers()
    assert [entry.name for entry in entries] == ["a", "a/b", "a/b/text", "a/b/program", "bin"]
    assert [entry.mode for entry in entries[:4]] == [0o755, 0o755, 0o644, 0o755]
    assert entries[3].mtime == 1
    assert all(entry.uid == 0 for entry in entries)


def test_the_image_has_ipykernel_and_no_roost() -> None:
    names = {each.metadata["Name"].lower() for each in image.required("ipykernel")}
    assert {"ipykernel", "pyzmq", "jupyter_client", "psutil"} <= names
    assert "roost" not in names


def test_other_inputs_have_another_name_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_SOURCES", tmp_path / "program")
    (tmp_path / "program").mkdir()
    names = []
    for version in ("1", "2"):
        (tmp_path / "program" / "go.mod").write_text(version)
        names.append(build.program())
    assert names[0] != names[1]
    assert all(name.is_relative_to(tmp_path / "roost-tests" / "kubernetes") for name in names)


def test_the_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "runc" else name)
    monkeypatch.setattr(containerd, "CNI_PLUGINS", Path("/"))
    assert "apt-get install --no-install-recommends busybox-static containerd" in str(build.why_not())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in str(build.why_not())


def test_a_failed_build_leaves_nothing_that_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program-1" / "kubernetes"

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(build, "cache", lambda: tmp_path)
    monkeypatch.setattr(build, "program", lambda: program)
    monkeypatch.setattr(build, "why_not_build", lambda: None)
    monkeypatch.setattr(build, "_compile", fail)
    with pytest.raises(OSError, match="disk full"):
        build.build(report=str)
    assert {path.name for path in tmp_path.iterdir()} == {"build.lock"}


def test_old_builds_are_forgotten_and_new_ones_of_other_checkouts_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("program-1", "images-1", "images-old", "images-other"):
        (tmp_path / name / "part").mkdir(parents=True)
        if name != "images-other":
            os.utime(tmp_path / name, (1, 1))
    monkeypatch.setattr(build, "cache", lambda: tmp_path)
    monkeypatch.setattr(build, "program", lambda: tmp_path / "program-1" / "part")
    monkeypatch.setattr(build, "images", lambda: tmp_path / "images-1" / "part")
    monkeypatch.setattr(build, "why_not_build", lambda: None)
    build.build()
    assert {path.name for path in tmp_path.iterdir()} == {
        "build.lock",
        "program-1",
        "images-1",
        "images-other",
    }
