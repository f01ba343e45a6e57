"""The declarations of backends, and the search for them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest

from roost.scheduler.backends import registry
from roost.scheduler.backends.spec import BackendSpec, RequestOption
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError
from roost.testing.deadlines import allow_s

SPEC = BackendSpec(
    name="demo",
    settings="demo.settings:RoostDemoBackend",
    create="demo.backend:create",
    request_options=(
        RequestOption(name="queue", kind=str, help="queue of the cluster", variable="KERNEL_QUEUE"),
        RequestOption(name="nice", kind=int, help="how nice the kernel is"),
        RequestOption(name="share", kind=float, help="share of the queue", variable="KERNEL_SHARE"),
        RequestOption(name="exclusive", kind=bool, help="whether the node is for this kernel alone"),
    ),
)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"que": "a"}, "no request option of the backend demo named que: did you mean queue?"),
        ({"colour": "a"}, "named colour: known are exclusive, nice, queue, share."),
        ({"queue": 1}, "queue = 1 must be text (queue of the cluster)."),
        ({"nice": 1.5}, "nice = 1.5 must be a whole number"),
        ({"nice": True}, "nice = True must be a whole number"),
        ({"share": "much"}, "share = 'much' must be a number"),
        ({"exclusive": 1}, "exclusive = 1 must be true or false"),
        ({"exclusive": "yes"}, "exclusive = 'yes' must be true or false"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], says: str) -> None:
    for check in (SPEC.check_options, lambda options: SPEC.read_options(options, {})):
        with pytest.raises(ConfigError) as caught:
            check(options)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_backend_without_options_says_so() -> None:
    bare = BackendSpec(name="bare", settings="bare:RoostBareBackend", create="bare:create")
    bare.check_options({})
    with pytest.raises(ConfigError, match="the backend bare has no options for requests: leave out 'queue'"):
        bare.check_options({"queue": "a"})


def test_options_are_read_from_text_and_variables() -> None:
    given = {"queue": "7", "nice": "3", "share": 1, "exclusive": "true"}
    assert SPEC.read_options(given, {}) == {"queue": "7", "nice": 3, "share": 1, "exclusive": True}
    SPEC.check_options(SPEC.read_options(given, {}))
    variables = {"KERNEL_QUEUE": "long", "KERNEL_SHARE": "0.5", "KERNEL_NICE": "9"}
    assert SPEC.read_options(given, variables) == {
        "queue": "long",
        "nice": 3,
        "share": 0.5,
        "exclusive": True,
    }
    assert SPEC.read_options({"queue": None}, {"KERNEL_QUEUE": " "}) == {}
    with pytest.raises(ConfigError, match="share = 'half' must be a number"):
        SPEC.read_options({}, {"KERNEL_SHARE": "half"})


@pytest.fixture
def forget() -> Iterator[None]:
    """Read the installed packages again, before the test and after it."""
    caches = (registry.get_spec, registry._find_references)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: None) -> Path:
    """Return a folder of installed packages that Python searches first."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(packages: Path, name: str, entries: str, code: str = "") -> None:
    metadata = packages / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[roost.backends]\n{entries}\n")
    (packages / f"{name}.py").write_text(code)


CLOUD = """
from roost.scheduler.backends.spec import BackendSpec
from roost.scheduler.config.section import Section
from traitlets import Unicode

class RoostCloudBackend(Section):
    address = Unicode("")

SPEC = BackendSpec(name="cloud", settings="cloudy:RoostCloudBackend", create="cloudy:create",
                   address_variable="CLOUD_ADDRESS")
"""


def test_a_package_can_bring_a_backend(packages: Path) -> None:
    """roost finds such a backend's settings, and checks their configuration section even if another backend is used."""
    install(packages, "cloudy", "cloud = cloudy:SPEC", CLOUD)
    assert registry.backend_names() == (
        "cloud",
        "dask",
        "docker",
        "kubernetes",
        "local",
        "ray",
        "ssh",
        "yarn",
    )
    assert registry.get_spec("cloud").address_variable == "CLOUD_ADDRESS"
    _, own = load_settings("cloud", {"address": "there"}, path=[])
    assert own.trait_values(config=True) == {"address": "there"}
    (packages / "jupyter_roost_config.py").write_text("c.RoostCloudBackend.adress = 'there'")
    with pytest.raises(ConfigError, match=r"no option of c.RoostCloudBackend named adress: did you mean"):
        load_settings("local", {}, path=[str(packages)])


@pytest.mark.parametrize(
    ("entries", "code", "says"),
    [
        (
            "cloud = cloudy:SPEC",
            "import no_such_library",
            "cannot be loaded from cloudy:SPEC: ModuleNotFound",
        ),
        ("cloud = cloudy:SPECS", CLOUD, "cannot be loaded from cloudy:SPECS: AttributeError"),
        ("cloud = cloudy:RoostCloudBackend", CLOUD, "which is no BackendSpec of that name"),
        ("other = cloudy:SPEC", CLOUD, "'other', which is no BackendSpec of that name"),
        (
            "local = cloudy:SPEC",
            CLOUD,
            "cloudy and roost provide several backends 'local': keep only one",
        ),
    ],
)
def test_a_broken_package_is_one_sentence(packages: Path, entries: str, code: str, says: str) -> None:
    sys.modules.pop("cloudy", None)
    install(packages, "cloudy", entries, code)
    name = entries.split()[0]
    with pytest.raises(ConfigError) as caught:
        registry.get_spec(name)
    assert says in str(caught.value)
    if name != "local":
        assert registry.get_spec("local").runs_on_this_machine


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"there is no backend 'clout'; known are dask, docker, kubernetes, local, ray, ssh, yarn\.",
    ):
        registry.get_spec("clout")


@pytest.mark.parametrize("name", registry.backend_names())
def test_specs_are_cheap_and_true(name: str) -> None:
    """Reading a spec imports nothing but roost and the standard library. The settings that it names exist."""
    code = f"""
import sys, roost.scheduler.errors
before = set(sys.modules)
from roost.scheduler.backends.registry import get_spec, load_object
spec = get_spec({name!r})
print(*{{module.partition(".")[0] for module in set(sys.modules) - before}} - sys.stdlib_module_names - {{"roost"}})
settings = load_object(spec.settings, "settings")
print(settings.__name__, "numpy" in sys.modules, {name!r} != "local" and {name!r} in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=allow_s(60)
    )
    assert done.stdout.splitlines() == ["", f"Roost{name.capitalize()}Backend False False"]


def test_a_missing_package_is_one_sentence() -> None:
    replace(SPEC, packages=("json", "traitlets")).check_packages()
    with pytest.raises(
        ConfigError, match=r"the backend demo needs the package no_such: .* `.* '\.\[demo\]'`\)\.$"
    ):
        replace(SPEC, packages=("json", "no_such")).check_packages()


@pytest.mark.parametrize("name", ["dask", "docker", "kubernetes", "ray", "yarn"])
def test_a_shipped_backend_needs_what_its_extra_installs(name: str) -> None:
    marker = f"extra == '{name}'"
    extra = [need for need in requires("roost") or () if marker in need.replace('"', "'")]
    installed = {re.split(r"[^\w-]", need)[0].replace("-", "_") for need in extra}
    assert installed == set(registry.get_spec(name).packages)
