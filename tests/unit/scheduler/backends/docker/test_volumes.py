"""The volumes of a kernel: how they are written, which ones the operator's list covers, and all that is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from traitlets import TraitError

from roost.scheduler.backends.docker import SPEC
from roost.scheduler.backends.docker.settings import RoostDockerBackend
from roost.scheduler.backends.docker.volumes import Volume, check_volumes, read_volumes
from roost.scheduler.errors import ConfigError

ALLOWED = ("/data", "/scratch:rw", "team-*:rw", "models")


def test_volumes_are_written_as_for_docker() -> None:
    texts = ["/data/sets/:/data:ro", "team-a:/home/kernel/work", "/scratch//x:/scratch/:rw"]
    assert read_volumes({"volumes": texts}) == [
        Volume(source="/data/sets", target="/data", is_writable=False),
        Volume(source="team-a", target="/home/kernel/work", is_writable=True),
        Volume(source="/scratch/x", target="/scratch", is_writable=True),
    ]
    assert read_volumes({}) == []


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("/data:/data:ro,models:/models:ro", ["/data:/data:ro", "models:/models:ro"]),
        ('["/data:/data:ro"]', ["/data:/data:ro"]),
        (["/data:/data:ro"], ["/data:/data:ro"]),
        ("", []),
    ],
)
def test_a_variable_or_a_command_line_gives_them_as_one_text(given: object, texts: list[str]) -> None:
    assert SPEC.read_options({"volumes": given}, {})["volumes"] == texts
    if isinstance(given, str) and given:
        assert SPEC.read_options({}, {"KERNEL_VOLUMES": given})["volumes"] == texts


@pytest.mark.parametrize(
    "wrong", [5, True, {"/data": "/data"}, ["/data:/data", 5], [["/data"]], "[1]", "[", None]
)
def test_anything_but_texts_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"volumes = .* must be a list of texts"):
        SPEC.check_options({"volumes": wrong})


@pytest.mark.parametrize(
    "texts",
    [
        ["/data:/data:ro"],
        ["/data/a/b:/data:ro", "/scratch:/scratch", "models:/models:ro", "team-x:/x"],
        ["/scratch/mine:/work:ro"],
    ],
)
def test_the_operators_list_covers_folders_within_and_names(texts: list[str]) -> None:
    check_volumes({"volumes": texts}, ALLOWED)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (
            "/etc:/x:ro",
            "is not allowed here: the operator allows /data (read only), /scratch, team-*, models",
        ),
        ("/:/host:ro", "is not allowed here"),
        ("//:/host:ro", "is not allowed here"),
        ("/database:/x:ro", "is not allowed here"),
        ("/proc:/x:ro", "is not allowed here"),
        ("/var/run/docker.sock:/x", "is not allowed here"),
        ("others:/x", "is not allowed here"),
        ("/data:/data", "may only be read here: write :ro"),
        ("/data:/data:rw", "may only be read here: write :ro"),
        ("models:/models", "may only be read here: write :ro"),
    ],
)
def test_what_the_list_does_not_cover_is_refused(text: str, refusal: str) -> None:
    with pytest.raises(ConfigError, match="the volume ") as refused:
        check_volumes({"volumes": [text]}, ALLOWED)
    assert refusal in str(refused.value)


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(
        ConfigError, match=r"the operator allows none \(c\.RoostDockerBackend\.allowed_volumes\)"
    ):
        check_volumes({"volumes": ["/data:/data:ro"]}, RoostDockerBackend().allowed_volumes)


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "::", "/data", "/data:", "/data:/x:", "/data:/x:ro:ro", "/data:/x:rshared", "/data:/x:ro,rshared",
        "/data:/x:z", "/data:/x:RO", "/data:x:ro", "/data:../x", "/data:/x/../../etc", "/data/../etc:/x", "/..:/x",
        "./data:/x", "../data:/x", "~/data:/x", "data/sets:/x", "-data:/x", "$HOME:/x", " /data:/x", "/data: /x",
        "/data:/x\n", "/data\0:/x", "/da\x1bta:/x", "roost-owner-1:/x", "type=bind,source=/,target=/x",
        f"/{'a' * 2000}:/x", f"/data:/{'a' * 2000}",
    ],
)  # fmt: skip
def test_other_words_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^volumes = .*") as refused:
        read_volumes({"volumes": [text]})
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "target",
    [
        "/", "//", "/.", "/tmp", "/tmp/", "/./tmp", "/tmp/roost-agent", "/tmp/x", "/roost", "/roost/start.zip", "/proc",
        "/proc/1", "/sys/fs/cgroup", "/dev", "/dev/shm",
    ],
)  # fmt: skip
def test_no_volume_hides_files_of_the_system_or_the_agent(target: str) -> None:
    with pytest.raises(ConfigError, match="would hide files of the system or of roost"):
        read_volumes({"volumes": [f"/data:{target}"]})


@pytest.mark.parametrize(
    "targets", [("/x", "/x"), ("/x", "/x/"), ("/x", "//x"), ("/x/y", "/x"), ("/x", "/x/y/z")]
)
def test_no_volume_is_mounted_in_another_one(targets: Sequence[str]) -> None:
    with pytest.raises(ConfigError, match="volumes has two entries in '/x'"):
        read_volumes({"volumes": [f"/data:{target}" for target in targets]})
    read_volumes({"volumes": ["/data:/x", "/data:/xy"]})


def test_there_is_a_limit_for_their_number() -> None:
    with pytest.raises(ConfigError, match="volumes has 100000 entries: at most 32"):
        read_volumes({"volumes": ["/data:/x"] * 100_000})


@pytest.mark.parametrize(
    "wrong",
    [
        "", "/", "//", "/.", "/data/..", "/../data", "data/sets", "/data:rshared", "/data:rw:rw", "/proc", "/sys/fs",
        "/dev/shm:rw", "-x", "~/data",
    ],
)  # fmt: skip
def test_a_list_that_would_give_away_the_machine_is_refused(wrong: str) -> None:
    with pytest.raises(TraitError, match="allowed_volumes: "):
        RoostDockerBackend(allowed_volumes=[wrong])
