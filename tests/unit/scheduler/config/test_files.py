"""The settings: read from files and options, checked, and frozen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from traitlets import TraitError

from roost.launchers.protocol.agent_settings import Forking
from roost.placement.model.json_codec import decode, encode
from roost.scheduler.backends.local.settings import RoostLocalBackend
from roost.scheduler.backends.ray.settings import RoostRayBackend
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.scheduler.config.files import load_settings
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import ConfigError

GIB = 1 << 30


def test_a_range_of_ports_reaches_the_agents() -> None:
    for section in (RoostRayBackend, RoostSshBackend):
        assert section(kernel_ports=" 40000 - 40005 ").agent_settings().kernel_ports == (40_000, 40_005)
        assert section().agent_settings().kernel_ports == ()


def write(folder: Path, text: str, name: str = "jupyter_roost_config.py") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return [str(folder)]


def test_without_a_file_the_defaults_hold() -> None:
    assert load_settings("local", {}, path=[]) == (Settings(), RoostLocalBackend())


def test_python_and_json_files_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "first",
        "c.RoostScheduler.max_gpus_per_kernel = 0.5\n"
        "c.RoostScheduler.max_memory_per_user = '8GiB'\n"
        "c.RoostScheduler.allowed_users = ['ada']\n"
        "c.RoostLocalBackend.preload = ['numpy']\n"
        "c.RoostLocalBackend.preload_by_python = {'/opt/ml/*': ['pandas']}\n"
        "c.RoostLocalBackend.labels = {'zone': 'a'}\n"
        "c.RoostLocalBackend.taints = ['lab']\n",
    )
    site = {"RoostScheduler": {"max_gpus_per_kernel": 2, "max_kernels_per_user": 3}}
    path += write(tmp_path / "second", json.dumps(site), "jupyter_roost_config.json")
    settings, local = load_settings("local", {}, path=path)
    assert settings == Settings(
        max_gpus_per_kernel=0.5,
        max_kernels_per_user=3,
        max_memory_per_user=8 * GIB,
        allowed_users=["ada"],
    )
    assert local == RoostLocalBackend(
        preload=["numpy"], preload_by_python={"/opt/ml/*": ["pandas"]}, labels={"zone": "a"}, taints=["lab"]
    )
    assert decode(Forking, encode(local.forking())) == local.forking()
    assert local.forking().choose_preloads("/opt/ml/bin/python") == ["numpy", "pandas"]
    assert local.forking().choose_preloads("/opt/web/bin/python") == ["numpy"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "c.RoostScheduler.max_gpu_per_kernel = 1",
            "^/.*/jupyter_roost_config.py: there is no .* did you mean max_gpus_per_kernel",
        ),
        (
            "c.RoostSheduler.max_gpus_per_kernel = 1",
            "^/.*/jupyter_roost_config.py: there is no .* did you mean c.RoostScheduler",
        ),
        (
            "c.RoostScheduler.max_gpus_per_kernel = 'many'",
            "^/.*/jupyter_roost_config.py: a setting of c.RoostScheduler is wrong: max_gpus_per_kernel = 'many' is not",
        ),
        ("c.RoostScheduler.max_gpus_per_kernel = -1", "= -1 is not possible: give a number, 0 or more"),
        ("c.RoostScheduler.default_memory = 'lots'", "'lots' is not an amount of memory"),
        ("c.RoostScheduler.allow_client_policies = 'no'", "= 'no' is not possible: give true or false"),
        ("c.RoostScheduler.allowed_users = [1]", "= .1. is not possible: give a list of texts"),
        *[
            (f"c.RoostScheduler.kernelspec_users = {{'spark': {users}}}", "is not possible: write it as in")
            for users in ("['ada']", "{'allowed': 'ada'}", "{'denied': [1]}", "{'users': ['ada']}", "{}")
        ],
        (
            "c.RoostScheduler.kernelspec_users = {'A': {'denied': []}, 'a': {'denied': []}}",
            "kernelspec_users: 'a' is there twice: Jupyter ignores case",
        ),
        (
            "c.RoostScheduler.default_memory = '1KiB'",
            "1 KiB is too little for a kernel: give at least 16 MiB",
        ),
        ("c.RoostScheduler.default_memory = 1.5", "give an amount of memory such as '8GiB'"),
        (
            "c.RoostScheduler.default_gpus = 1.5",
            "^/.*/jupyter_roost_config.py: .* is wrong: default_gpus = 1.5 is not possible: .* Ask for 1 or 2",
        ),
        (
            "c.RoostScheduler.default_cpus = 4\nc.RoostScheduler.max_cpus_per_kernel = 2",
            "default_cpus = 4 is more than max_cpus_per_kernel = 2 allows: change one of them",
        ),
        (
            "c.RoostScheduler.default_memory = '2GiB'\nc.RoostScheduler.max_memory_per_user = '1GiB'",
            "default_memory = 2 GiB is more than max_memory_per_user = 1 GiB allows",
        ),
        (
            "c.RoostScheduler.ready_places = 100",
            "ready_places = 100 is not possible: give a whole number from 0 to 8",
        ),
        ("c.RoostLocalBackend.labels = {'zone': 1}", "give an object of names and texts"),
        (
            "c.RoostScheduler.policies = {'balanced': 'm:P'}",
            "policies: 'balanced' is the name of a shipped policy: give yours another",
        ),
        *[
            (
                f"c.RoostLocalBackend.kernel_ports = '{ports}'",
                "kernel_ports = .* is not possible: give the lowest",
            )
            for ports in (
                "40000",
                "40000-40004",
                "40999-40000",
                "1-2000",
                "60000-70000",
                "a-b",
                "-",
                "1e4-2e4",
            )
        ],
        ("c.RoostLocalBackend.taints = ['']", "is wrong: taints: a taint has no name"),
        ("c.RoostLocalBackend.preload = '[jedi]'", "preload: '.jedi.' is no name of a module: give a list"),
        (
            "c.RoostLocalBackend.preload_by_python = {'/opt/*': ['numpy', 'a b']}",
            "preload_by_python: 'a b' is no name of a module: give a list",
        ),
        (
            "c.RoostScheduler.idle_after_s = '1h'",
            "= '1h' is not possible: give a number of seconds, 1 or more",
        ),
        *[
            (f"c.RoostLocalBackend.cpu_ceiling = {value}", "is not possible: give 0, or a number, 1 or more")
            for value in (0.5, 1e-6, -1, "float('nan')")
        ],
        (
            "c.RoostScheduler.default_cpus = float('nan')",
            "c.RoostScheduler is wrong: default_cpus = nan is not possible: cpus must be a finite number",
        ),
        ("raise RuntimeError('oops')", "RuntimeError: oops"),
        (
            "import sys; sys.exit(3)",
            r"/jupyter_roost_config.py cannot be read: it ends Python .SystemExit.3..\.$",
        ),
        ("exit()", r"it ends Python .SystemExit.None..\.$"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings("local", {}, path=write(tmp_path, text))


def test_options_overrule_the_file_and_are_checked_too(tmp_path: Path) -> None:
    write(tmp_path, "c.RoostLocalBackend.gpus = 1")
    file = str(tmp_path / "jupyter_roost_config.py")
    options = {
        "config_file": file,
        "gpus": 2,
        "memory_bytes": GIB,
        "gpu_model": "T4",
        "labels": {"zone": "b"},
    }
    assert load_settings("local", options, path=[])[1] == RoostLocalBackend(
        gpus=2, memory=GIB, gpu_model="T4", labels={"zone": "b"}
    )
    assert load_settings("local", {"config_file": file}, path=[])[1] == RoostLocalBackend(gpus=1)
    for wrong, said in (
        ({"gpu": 2}, "did you mean gpus"),
        ({"gpus": -1}, "gpus = -1 is not possible: give a whole number from 0 to 1024"),
        ({"gpus": 1.5}, "gpus = 1.5 is not possible"),
        ({"config_file": str(tmp_path / "none.py")}, "there is no configuration file"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_settings("local", wrong, path=[])
    with pytest.raises(ConfigError, match="there is no backend 'cloud'"):
        load_settings("cloud", {}, path=[])


def test_settings_are_frozen() -> None:
    settings = Settings(default_memory="2GiB")
    with pytest.raises(AttributeError, match="is frozen"):
        settings.default_memory = 0
    changed = settings.with_values(default_cpus=2)
    assert (changed.default_cpus, changed.default_memory, settings.default_cpus) == (2, 2 * GIB, 0)
    assert changed != settings
    with pytest.raises(TypeError, match="has no setting 'default_cpu'"):
        Settings(default_cpu=1)


@pytest.mark.parametrize("amount", ["lots", -1, True, 1.5, None])
def test_memory_is_checked(amount: object) -> None:
    with pytest.raises(TraitError, match="default_memory"):
        Settings(default_memory=amount)
