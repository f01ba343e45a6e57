"""The names of policies: their owners, their rights, and how they are found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.fakes.client_policies import CLUSTER, HALF, given, install_package, placed, policies
from roost.scheduler.config.files import load_settings
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import ConfigError, NotAllowed
from roost.scheduler.policies import sandbox
from roost.testing.deadlines import allow_s

PARTS = """
from __future__ import annotations
from dataclasses import dataclass
from roost.placement import Pipeline
from roost.placement.rules.scorers import FewKernels

@dataclass(frozen=True, slots=True)
class Values:
    name: str = "values"

MINE = Pipeline(name="mine", scorers=((FewKernels(), 1.0),))
NOT = 7
class Needs:
    def __init__(self, one): ...
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LOAD_S", allow_s(60))


async def test_only_the_operator_names_a_file(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.py").write_text(PARTS)
    (tmp_path / "config.py").write_text(
        "c.RoostScheduler.policies = {'mine': 'policies/mine.py:MINE', 'not': 'policies/mine.py:NOT',\n"
        "  'none': 'policies/mine.py:NONE', 'gone': 'gone.py:X', 'needs': 'policies/mine.py:Needs', 'p': 'pack'}\n"
        "c.RoostScheduler.default_policy = 'policies/mine.py:MINE'\n"
        "c.RoostScheduler.policy_timeout_s = 20\n"
    )
    settings, _ = load_settings("local", {"config_file": str(tmp_path / "config.py")})
    modules, path = set(sys.modules), list(sys.path)
    async with policies(settings) as found:
        for name in ("mine", settings.default_policy, "p"):
            await found.load(name)
            found.check(name)
            assert (await found.decide(name, HALF, CLUSTER)).fallback is None
        for name, says in {
            "not": "not is not a policy: it needs a name and place",
            "none": "mine.py has no 'NONE'",
            "gone": r"gone cannot be loaded \(FileNotFoundError",
            "needs": r"needs cannot be loaded \(TypeError",
            "unheard": "unknown policy 'unheard'; known are balanced, pack",
        }.items():
            await found.load(name)
            with pytest.raises(ConfigError, match=says):
                found.check(name)
    assert sys.path == path
    assert not {name for name in set(sys.modules) - modules if name.startswith("_roost_policy")}
    assert not list(tmp_path.rglob("__pycache__"))


async def test_a_fixed_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("MINE = ")
    async with policies(Settings(policy_timeout_s=allow_s(20), policies={"mine": f"{file}:MINE"})) as found:
        await found.load("mine")
        with pytest.raises(ConfigError, match=r"mine cannot be loaded \(SyntaxError"):
            found.check("mine")
        file.write_text(PARTS)
        await found.load("mine")
        found.check("mine")


async def test_a_policy_that_loads_too_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, loads, file = tmp_path / "release", tmp_path / "loads", tmp_path / "mine.py"
    file.write_text(
        "import pathlib, time\n"
        f"with open({str(loads)!r}, 'a') as file: file.write('once ')\n"
        f"while not pathlib.Path({str(release)!r}).exists(): time.sleep(0.01)\n{PARTS}".replace(
            "from __future__ import annotations", ""
        )
    )
    load_s = allow_s(3)
    async with policies(Settings(policy_timeout_s=allow_s(20), policies={"mine": f"{file}:MINE"})) as found:
        while not loads.exists():  # a busy machine takes longer to come to the file
            monkeypatch.setattr(sandbox, "LOAD_S", load_s)
            await asyncio.gather(found.load("mine"), found.load("mine"))
            load_s *= 2
        with pytest.raises(ConfigError, match=r"mine did not load within .* s; choose another\."):
            found.check("mine")
        assert loads.read_text().split() == ["once"]
        release.touch()
        monkeypatch.setattr(sandbox, "LOAD_S", allow_s(30))
        await found.load("mine")
        found.check("mine")


async def test_a_policy_whose_process_ends_while_it_loads(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import os\nos._exit(9)\n")
    async with policies(Settings(policy_timeout_s=allow_s(20), policies={"mine": f"{file}:MINE"})) as found:
        await found.load("mine")
        with pytest.raises(ConfigError, match=r"policy mine failed \(its process exited with code 9\)\."):
            found.check("mine")


async def test_which_policies_clients_may_add() -> None:
    mine = placed("small", "0")
    async with policies(Settings(allow_client_policies=False)) as found:
        with pytest.raises(NotAllowed, match="allow_client_policies"):
            await found.add(**given("mine", mine))
    async with policies(Settings(policy_timeout_s=allow_s(20), policies={"taken": "pack"})) as found:
        for name, wrong in {
            "balanced": "a shipped policy has this name",
            "taken": "the operator's configuration uses this name",
            "a:b": "a colon is only for",
            "": "a name is needed",
            " ": "a name is needed",
            "bad name\n": "a character that cannot be printed",
            "bell\a": "a character that cannot be printed",
        }.items():
            with pytest.raises(ConfigError, match=f"needs another name: .*{wrong}"):
                await found.add(**given(name, mine))
        with pytest.raises(ConfigError, match=r"cannot load a policy from Python 2\.7"):
            await found.add(**{**given("mine", mine), "python": "2.7"})
        with pytest.raises(ConfigError, match="mine cannot be loaded"):
            await found.add(**{**given("mine", mine), "pickled": "AAAA"})
        with pytest.raises(ConfigError, match="mine is not a policy"):
            await found.add(**given("mine", 7))
        await found.load("mine")
        with pytest.raises(ConfigError, match="unknown policy 'mine'"):
            found.check("mine")
        once = given("mine", mine)
        await asyncio.gather(found.add(**once), found.add(**once))
        kept = found.get("mine")
        await found.add(**once)
        assert found.get("mine") is kept
        await found.add(**given("mine", mine))
        assert found.get("mine") is not kept


async def test_installed_policies_are_found_and_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_package(tmp_path, theirs="their_policy:MINE")
    (tmp_path / "their_policy.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    async with policies() as found:
        await found.load("theirs")
        assert (await found.decide("theirs", HALF, CLUSTER)).fallback is None
        with pytest.raises(
            ConfigError, match="needs another name: a policy of an installed package has this name"
        ):
            await found.add(**given("theirs", placed("small", "0")))


def test_a_command_shows_the_error_of_a_policy_without_its_stack(tmp_path: Path) -> None:
    (tmp_path / "nodes.json").write_text('{"nodes": [{"id": "a", "cpus": 8, "metrics_age_s": 1}]}')
    (tmp_path / "mine.py").write_text(
        "class Broken:\n    name = 'broken'\n    def place(self, request, snapshot, *, avoid):\n        1 / 0\n"
    )
    (tmp_path / "jupyter_roost_config.json").write_text('{"RoostScheduler": {"policy_timeout_s": 60}}')
    command = ["explain", "--snapshot", "nodes.json", "--cpus", "1", "--policy", "mine.py:Broken"]
    done = subprocess.run(
        [sys.executable, "-m", "roost", *command],
        cwd=tmp_path,
        env={**os.environ, "JUPYTER_CONFIG_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=allow_s(60),
        check=True,
    )
    said = " ".join(done.stdout.split())
    assert "since policy mine.py:Broken failed (ZeroDivisionError: division by zero, at mine.py:" in said
    assert done.stderr == ""
