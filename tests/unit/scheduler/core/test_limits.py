"""What users may have, and the settings that say so."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from fake_cluster import world

from roost.placement.model import Request
from roost.scheduler.config.settings import LocalSettings, RoostScheduler, Settings, load
from roost.scheduler.core.limits import admit, with_defaults
from roost.scheduler.errors import ConfigError, LimitExceeded, NotAllowed

GIB = 1 << 30


@pytest.mark.parametrize(
    ("settings", "request_", "said"),
    [
        (Settings(max_cpus_per_kernel=2), Request(cpus=3), "asks for 3 CPUs, and max_cpus_per_kernel"),
        (
            Settings(max_gpus_per_kernel=0.5),
            Request(gpus=1),
            "asks for 1 GPU, and max_gpus_per_kernel allows 0.5 GPU: ask for less",
        ),
        (
            Settings(max_memory_bytes_per_kernel=GIB),
            Request(memory_bytes=2 * GIB),
            "asks for 2 GiB of memory, and max_memory_per_kernel allows 1 GiB",
        ),
        (
            Settings(max_cpus_per_user=3),
            Request(cpus=2),
            "ada would have 4 CPUs, .* that has some \\(aaaaaaaa\\)",
        ),
        (
            Settings(max_kernels_per_user=1),
            Request(),
            "ada has 1 kernel, .* allows 1: stop one first \\(aaaaaaaa\\)",
        ),
    ],
)
def test_a_cap_says_which_it_is_and_what_is_allowed(settings: Settings, request_: Request, said: str) -> None:
    held = {"aaaaaaaa-1": Request(cpus=2)}
    with pytest.raises(LimitExceeded, match=said) as caught:
        admit(request_, "ada", held, settings)
    cap = caught.value.fields["cap"]
    assert cap in RoostScheduler.class_traits(config=True)
    assert getattr(settings, cap.replace("_memory", "_memory_bytes")) == caught.value.fields["allowed"]


def test_what_is_exactly_allowed_is_allowed() -> None:
    admit(Request(cpus=0.1), "ada", {"a": Request(cpus=0.2)}, Settings(max_cpus_per_user=0.3))
    over = {"a": Request(gpus=2)}
    admit(Request(cpus=1), "ada", over, Settings(max_gpus_per_user=1))


def test_who_is_denied_or_not_on_the_list_may_not() -> None:
    admit(Request(), "ada", {}, Settings(allowed_users=frozenset(["ada"])))
    for settings in (Settings(denied_users=frozenset(["eve"])), Settings(allowed_users=frozenset(["ada"]))):
        with pytest.raises(NotAllowed, match="'eve' may not"):
            admit(Request(), "eve", {}, settings)


def test_defaults_fill_what_is_not_asked_for() -> None:
    settings = Settings(default_cpus=1, default_memory_bytes=GIB, default_policy="pack")
    assert with_defaults(Request(cpus=2), settings) == Request(cpus=2, memory_bytes=GIB, policy="pack")


async def test_caps_hold_in_the_scheduler_and_are_by_user(tmp_path: Path) -> None:
    async with world(tmp_path, settings=Settings(max_kernels_per_user=1)) as w:
        await w.start("a")
        with pytest.raises(LimitExceeded):
            await w.start("b")
        assert (await w.start("b", user="bob")).state == "running"
        w.agent.end("a")
        await w.told("exited")
        assert (await w.start("a", "2")).state == "running"
        await w.scheduler.stop("a", 0)
        assert (await w.start("c")).state == "running"


def write(folder: Path, text: str, name: str = "jupyter_roost_config.py") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return [str(folder)]


def test_without_a_file_the_defaults_hold() -> None:
    assert load("local", {}, path=[]) == Settings()


def test_python_and_json_files_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "first",
        "c.RoostScheduler.max_gpus_per_kernel = 0.5\n"
        "c.RoostScheduler.max_memory_per_user = '8GiB'\n"
        "c.RoostScheduler.allowed_users = ['ada']\n"
        "c.RoostLocalBackend.preload = ['numpy']\n"
        "c.RoostLocalBackend.labels = {'zone': 'a'}\n"
        "c.RoostLocalBackend.taints = ['lab']\n",
    )
    site = {"RoostScheduler": {"max_gpus_per_kernel": 2, "max_kernels_per_user": 3}}
    path += write(tmp_path / "second", json.dumps(site), "jupyter_roost_config.json")
    settings = load("local", {}, path=path)
    assert settings == Settings(
        max_gpus_per_kernel=0.5,
        max_kernels_per_user=3,
        max_memory_bytes_per_user=8 * GIB,
        allowed_users=frozenset(["ada"]),
        local=LocalSettings(preload=("numpy",), labels={"zone": "a"}, taints=("lab",)),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("c.RoostScheduler.max_gpu_per_kernel = 1", "did you mean max_gpus_per_kernel"),
        ("c.RoostSheduler.max_gpus_per_kernel = 1", "did you mean c.RoostScheduler"),
        ("c.RoostScheduler.max_gpus_per_kernel = 'many'", "a setting is wrong"),
        ("c.RoostScheduler.max_gpus_per_kernel = -1", "a setting is wrong"),
        ("c.RoostScheduler.default_memory = 'lots'", "'lots' is not an amount of memory"),
        ("c.RoostLocalBackend.labels = {'zone': 1}", "a setting is wrong"),
        (
            "c.RoostScheduler.policies = {'balanced': 'm:P'}",
            "'balanced' .* the name of a shipped one: give it",
        ),
        ("c.RoostLocalBackend.taints = ['']", "a taint of c.RoostLocalBackend has no name"),
        ("raise RuntimeError('oops')", "RuntimeError: oops"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("local", {}, path=write(tmp_path, text))


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
    assert load("local", options, path=[]).local == LocalSettings(
        gpus=2, memory_bytes=GIB, gpu_model="T4", labels={"zone": "b"}
    )
    assert load("local", {"config_file": file}, path=[]).local.gpus == 1
    for wrong, said in (
        ({"gpu": 2}, "did you mean gpus"),
        ({"gpus": -1}, "a setting is wrong"),
        ({"gpus": 1.5}, "a setting is wrong"),
        ({"config_file": str(tmp_path / "none.py")}, "there is no configuration file"),
    ):
        with pytest.raises(ConfigError, match=said):
            load("local", wrong, path=[])
    with pytest.raises(ConfigError, match="there is no backend 'cloud'"):
        load("cloud", {}, path=[])


def test_every_setting_can_be_configured() -> None:
    known = {name.replace("_memory", "_memory_bytes") for name in RoostScheduler.class_traits(config=True)}
    assert known == {field.name for field in fields(Settings)} - {"local", "ray", "dask"}
