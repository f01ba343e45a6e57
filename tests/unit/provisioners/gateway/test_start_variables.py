"""What a start may say."""

from __future__ import annotations

import os
import pwd
from typing import Any

import pytest
from tornado.web import HTTPError

from roost.provisioners.gateway.settings import RoostGateway
from roost.provisioners.gateway.start_variables import build_variables, check_references, check_text, inherit
from roost.provisioners.gateway.user_sources import EVERYBODY


def build(given: Any, person: str = "ada", timeout_s: float = 60.0, **settings: Any) -> dict[str, str]:
    return build_variables(given, person, RoostGateway(**settings), timeout_s=timeout_s)


def refuse(given: Any, person: str = "ada", **settings: Any) -> int:
    with pytest.raises(HTTPError) as refused:
        build(given, person, **settings)
    return int(refused.value.status_code)


def test_a_person_is_named_even_if_the_client_says_nothing() -> None:
    assert build(None) == build({}) == build({"KERNEL_USERNAME": ""}) == {"KERNEL_USERNAME": "ada"}


def test_amounts_folder_and_spark_options_are_taken() -> None:
    given = {
        "KERNEL_CPUS": "2",
        "KERNEL_MEMORY": "1GiB",
        "KERNEL_GPUS": "0.5",
        "KERNEL_WORKING_DIR": "/home/ada",
        "KERNEL_ID": "x",
        "KERNEL_EXTRA_SPARK_OPTS": "--conf a=b",
        "KERNEL_USERNAME": "ada",
    }
    assert build(given) == given


def test_other_variables_are_left_out() -> None:
    assert build({"PATH": "/evil", "LD_PRELOAD": "x", "KERNEL_FOO": "1", "ABC": 1}) == {
        "KERNEL_USERNAME": "ada"
    }


def test_the_operator_lists_more_variables() -> None:
    found = build({"ABC": "1", "KERNEL_FOO": "2", "DEF": "3"}, client_envs=["ABC", "KERNEL_FOO"])
    assert found == {"ABC": "1", "KERNEL_FOO": "2", "KERNEL_USERNAME": "ada"}


@pytest.mark.parametrize(
    "name",
    [
        "KERNEL_UID", "KERNEL_GID", "KERNEL_NAMESPACE", "KERNEL_SERVICE_ACCOUNT_NAME", "KERNEL_IMAGE",
        "KERNEL_VOLUMES", "KERNEL_VOLUME_MOUNTS", "KERNEL_QUEUE", "KERNEL_REMOTE_HOST",
    ],
)  # fmt: skip
def test_a_guarded_variable_needs_leave(name: str) -> None:
    assert refuse({name: "x"}) == 403
    assert build({name: "x"}, allowed_values={name: ["x"]})[name] == "x"
    assert refuse({name: "xy"}, allowed_values={name: ["x"]}) == 403
    assert build({name: "x"}, client_envs=[name])[name] == "x"
    assert build({name: "x"}, user_variables={name: "mine"})[name] == "mine"


def test_listed_values_may_be_patterns() -> None:
    allowed = {"KERNEL_IMAGE": ["team/*:1"]}
    assert build({"KERNEL_IMAGE": "team/python:1"}, allowed_values=allowed)["KERNEL_IMAGE"] == "team/python:1"
    assert refuse({"KERNEL_IMAGE": "evil/python:1"}, allowed_values=allowed) == 403


def test_forced_variables_come_last_and_know_the_user() -> None:
    forced = {"KERNEL_NAMESPACE": "nb-{user}", "KERNEL_CPUS": "1", "A": "{other} {user.x}"}
    found = build({"KERNEL_CPUS": "64"}, user_variables=forced)
    assert found == {
        "KERNEL_NAMESPACE": "nb-ada",
        "KERNEL_CPUS": "1",
        "A": "{other} {user.x}",
        "KERNEL_USERNAME": "ada",
    }


def test_a_forced_account_is_the_users_own() -> None:
    me = pwd.getpwuid(os.getuid())
    forced = {"KERNEL_UID": "{uid}", "KERNEL_GID": "{gid}"}
    found = build({}, person=me.pw_name, user_variables=forced)
    assert (found["KERNEL_UID"], found["KERNEL_GID"]) == (str(me.pw_uid), str(me.pw_gid))
    assert refuse({}, person="nobody-of-that-name", user_variables=forced) == 403


def test_a_forged_name_is_refused() -> None:
    assert refuse({"KERNEL_USERNAME": "eve"}) == 403
    assert refuse({"KERNEL_USERNAME": "Ada"}) == 403
    assert refuse({"KERNEL_USERNAME": ["ada"]}) == 400
    assert refuse({"KERNEL_USERNAME": "ada"}, person=EVERYBODY) == 403  # a person may have this name


def test_trust_believes_a_name() -> None:
    assert build({"KERNEL_USERNAME": "eve"}, person=EVERYBODY, users="trust")["KERNEL_USERNAME"] == "eve"
    assert build({}, person=EVERYBODY, users="trust")["KERNEL_USERNAME"] == EVERYBODY
    assert refuse({"KERNEL_USERNAME": "../x"}, person=EVERYBODY, users="trust") == 403


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "a\rb", "x" * 4097, 1, None, ["x"], {"a": "b"}])
def test_a_value_is_one_line_of_text(value: Any) -> None:
    assert refuse({"KERNEL_CPUS": value}) == 400
    with pytest.raises(HTTPError):
        check_text("path", value)


@pytest.mark.parametrize("env", [[], "x", 1, {str(number): "" for number in range(201)}])
def test_env_is_a_bounded_object(env: Any) -> None:
    assert refuse(env) == 400


def test_only_a_longer_timeout_counts() -> None:
    assert "KERNEL_LAUNCH_TIMEOUT" not in build({"KERNEL_LAUNCH_TIMEOUT": "40"})
    assert build({"KERNEL_LAUNCH_TIMEOUT": "61"})["KERNEL_LAUNCH_TIMEOUT"] == "61"
    assert "KERNEL_LAUNCH_TIMEOUT" not in build({"KERNEL_LAUNCH_TIMEOUT": "nan"})
    assert refuse({"KERNEL_LAUNCH_TIMEOUT": "soon"}) == 400


def test_what_a_kernel_inherits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "LC_ALL", "SECRET", "PROJECT", "KERNEL_UID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, name)
    found = inherit(RoostGateway(inherited_envs=["PROJ*", "KERNEL_*"]))
    assert {"PATH", "LC_ALL", "PROJECT", "CUDA_VISIBLE_DEVICES"} <= found.keys()
    assert not {"SECRET", "KERNEL_UID"} & found.keys()


def test_references_of_a_kernelspec_are_filled_or_refused() -> None:
    spec_env = {"A": "${HOME}/$KERNEL_USERNAME", "B": "$${LITERAL} $ 5%", "C": "${KERNEL_ID}"}
    check_references("spark", spec_env, {"HOME": "/home", "KERNEL_USERNAME": "ada"})
    with pytest.raises(HTTPError, match=r"spark needs \${HOME}"):
        check_references("spark", spec_env, {"KERNEL_USERNAME": "ada"})
