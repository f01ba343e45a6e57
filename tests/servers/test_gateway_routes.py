"""Every route of a running gateway, for every kind of caller. The test reads the routes from the application.

JupyterLab and the other extensions of this environment are installed beside it. The kernels wait for a fake service, so
that no cell has to wait for a process.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.routing import PathMatches
from tornado.web import HTTPError, RequestHandler
from tornado.websocket import websocket_connect

from kit.fakes.service import FakeService, fake_service
from kit.jupyter.gateway import CONFIG, RunningGateway, let_starts_wait, run_gateway
from kit.jupyter.kernelspecs import kernelspecs
from roost.provisioners.gateway import identity, kernels
from roost.provisioners.gateway.handlers import Channels, GatewayHandler
from roost.provisioners.gateway.operator_socket import list_kernels, open_socket, stop_kernels
from roost.provisioners.gateway.own_kernels import OwnKernelsOnly
from roost.provisioners.gateway.token_file import TokenFile
from roost.provisioners.jupyter_internals import read_launch_arguments
from roost.provisioners.server_extension.pending_start import PendingStart
from roost.scheduler.client.client import disconnect
from roost.scheduler.errors import LimitExceeded, NoNodeEver
from roost.testing.deadlines import allow_s, until

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
KERNEL = r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)"
SESSION = r"/api/sessions/(?P<session_id>\w+-\w+-\w+-\w+-\w+)"
SPEC = r"(?P<kernel_name>[\w\.\-%]+)"
PLAIN = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
ROWS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("/api", "GET"): (200, 200, 200),
    ("/api/me", "GET"): (200, 200, 200),
    ("/api/kernels", "GET"): (200, 200, 200),
    ("/api/kernels", "POST"): (201, 404, 404),
    (KERNEL, "GET"): (200, 404, 200),
    (KERNEL, "DELETE"): (204, 404, 204),
    (rf"{KERNEL}/(?P<action>restart|interrupt)", "POST"): (204, 404, 404),
    (rf"{KERNEL}/channels", "GET"): (101, 404, 404),
    ("/api/sessions", "GET"): (200, 200, 200),
    ("/api/sessions", "POST"): (201, 404, 404),
    (SESSION, "GET"): (200, 404, 404),
    (SESSION, "PATCH"): (200, 404, 404),
    (SESSION, "DELETE"): (204, 404, 404),
    ("/api/kernelspecs", "GET"): (200, 200, 200),
    (f"/api/kernelspecs/{SPEC}", "GET"): (200, 404, 200),
    (rf"/kernelspecs/{SPEC}/(?P<path>logo-[\w\.\-]+)", "GET"): (200, 404, 200),
    (rf"/kernelspecs/{SPEC}/(?P<path>logo-[\w\.\-]+)", "HEAD"): (200, 404, 200),
    (r"/roost/api/kernels/([\w-]+)", "GET"): (200, 404, 404),
    (r"/roost/api/kernels/([\w-]+)/outputs", "GET"): (200, 404, 404),
    ("/metrics", "GET"): (403, 403, 200),
}
"""By route and method: the status for the owner ada, for eve with what is ada's, and for an admin with `?all=1`."""
ELSEWHERE = (
    "/", "/login", "/logout", "/tree", "/lab", "/lab/api/extensions", "/lab/api/settings", "/files/x", "/view/x",
    "/static/favicon.ico", "/static/base/js/main.js", "/custom/custom.css", "/favicon.ico", "/robots.txt",
    "/terminals", "/api/terminals", "/api/status", "/api/spec.yaml", "/api/contents", "/api/contents/x",
    "/api/shutdown", "/api/resolvePath", "/api/config/x", "/api/security/csp-report", "/api/events/subscribe",
    "/api/nbconvert", "/nbconvert/html/x", "/roost", "/roost/", "/roost/page.js",
    "/roost/api/cards",
    "/roost/api/clusters", "/kernelspecs/roosted/kernel.json",
    "/kernelspecs/roosted/kernel.js", "/lsp/status", "/api/kernels/", "/api/kernels/x", "//api/kernels",
    "/api/kernelspecs/", "/API/KERNELS", "/api/kernels;x", "/api/kernels/%2e%2e",
)  # fmt: skip
"""Paths that Jupyter Server and its extensions have, or that look like those of a gateway."""


@pytest.fixture
def folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the kernelspecs `roosted`, `private` (not for eve) and `plain` (not roost's)."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "s3cret")
    for name in ("roosted", "private"):
        kernelspecs(tmp_path, name, env={"HOST": "secret-host"})
        (tmp_path / "kernels" / name / "logo-64x64.png").write_bytes(b"png")
    kernelspecs(tmp_path, "plain", metadata=PLAIN)
    return tmp_path


@pytest.fixture
def service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.setattr("roost.scheduler.client.client._CLOSE_S", allow_s(60))
    with fake_service() as service:
        let_starts_wait(service)
        yield service
        disconnect()


@pytest.fixture
async def gateway(folder: Path, service: FakeService) -> AsyncIterator[RunningGateway]:
    async with run_gateway(folder) as running:
        yield running


def list_rules(router: Any) -> Iterator[tuple[str, type[RequestHandler]]]:
    """Yield the pattern and the handler of each rule of an application's router, and of the routers in it."""
    for rule in router.rules:
        if hasattr(rule.target, "rules"):
            yield from list_rules(rule.target)
        else:
            assert isinstance(rule.matcher, PathMatches)
            yield rule.matcher.regex.pattern.removesuffix("$"), rule.target


async def fill(gateway: RunningGateway, pattern: str, method: str, *, is_new: bool) -> tuple[str, Any]:
    """Return a path and a body of a request to a route, about a new kernel or session of ada, or about none."""
    kernel_id = session_id = str(uuid.uuid4())
    if is_new and pattern in (SESSION, "/api/sessions"):
        session = await gateway.open_session("ada", f"{uuid.uuid4()}.ipynb")
        kernel_id, session_id = session["kernel"]["id"], session["id"]
    elif is_new and "kernels" in pattern:
        kernel_id = await gateway.start("ada")
    path = pattern.replace(KERNEL, f"/api/kernels/{kernel_id}").replace(r"([\w-]+)", kernel_id)
    path = path.replace(SESSION, f"/api/sessions/{session_id}").replace(SPEC, "private")
    path = path.replace("(?P<action>restart|interrupt)", "interrupt")
    path = path.replace(r"(?P<path>logo-[\w\.\-]+)", "logo-64x64.png")
    body: dict[str, Any] = {"name": "roosted", "kernel_id": kernel_id}
    if "sessions" in pattern:
        kernel = {"id": kernel_id} if pattern == "/api/sessions" else {}
        body = {"path": f"new-{uuid.uuid4()}.ipynb", "type": "notebook", "kernel": kernel}
    return path, body if method in ("POST", "PATCH", "PUT") else None


async def find_wrong_cells(gateway: RunningGateway) -> list[str]:
    """Return the cells of the table that are not as in `ROWS`, and the routes that have no row."""
    wrong = []
    rules = dict(list_rules(gateway.app.web_app.default_router))
    del rules["(.*)"]
    expired, token = TokenFile().add("ada", 1e-9)
    nobodies = {
        "nobody": {},
        "an unknown token": {"Authorization": "token unknown"},
        "an expired token": {"Authorization": f"token {expired}"},
        "a hash": {"Authorization": f"token {token.sha256}"},
        "a forged name": {"X-Forwarded-User": "ada", "Cookie": "username-127-0-0-1=ada"},
    }
    for pattern, handler in rules.items():
        if not any(row[0] == pattern for row in ROWS):
            wrong.append(f"{pattern} ({handler.__name__}) has no row")
        for method in METHODS:
            row = ROWS.get((pattern, method), (405, 405, 405))
            path, body = "", None
            for person, expected in zip(("ada", "eve", "root"), row, strict=True):
                path, body = await fill(gateway, pattern, method, is_new=row[0] != 405)
                path += "?all=1" if person == "root" else ""
                got = (await gateway.ask(person, method, path, body)).status
                if got != expected:
                    wrong.append(f"{method} {path} of {person}: {got}, not {expected}")
            nobody = row[0] if pattern == "/api" or handler.SUPPORTED_METHODS.count(method) == 0 else 401
            for name, headers in nobodies.items():
                got = (await gateway.ask("", method, path, body, headers=headers)).status
                if got != nobody:
                    wrong.append(f"{method} {path} of {name}: {got}, not {nobody}")
    return wrong


async def test_every_route_for_every_caller(gateway: RunningGateway) -> None:
    assert await find_wrong_cells(gateway) == []
    assert {pattern for pattern, _ in ROWS} == dict(list_rules(gateway.app.web_app.default_router)).keys() - {
        "(.*)"
    }
    for answer in (*gateway.received["eve"], *gateway.received[""]):
        assert not re.search(rb"\bada\b", answer)


def allow_all(patch: pytest.MonkeyPatch) -> None:
    async def is_authorized(*_: Any) -> bool:
        return True

    patch.setattr(OwnKernelsOnly, "is_authorized", is_authorized)


def own_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GatewayHandler, "owns", lambda *_: True)


def make_all_admins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GatewayHandler, "is_for_all", True)


def forget_whose_id(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernels.GatewayKernels, "_check_id", lambda *_: "")


def let_all_start_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(kernels.GatewayKernels, "find_obstacle", lambda *_: "")


def know_all_callers(patch: pytest.MonkeyPatch) -> None:
    async def identify(*_: Any) -> str:
        return "ada"

    patch.setattr(identity.GatewayIdentity, "identify", identify)


@pytest.mark.parametrize(
    "take_out",
    [allow_all, own_all, make_all_admins, forget_whose_id, let_all_start_all, know_all_callers],
)
async def test_the_table_notices_a_missing_check(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, take_out: Callable[[pytest.MonkeyPatch], None]
) -> None:
    take_out(monkeypatch)
    wrong = await find_wrong_cells(gateway)
    assert wrong
    print("\n".join(wrong[:5]))


@pytest.mark.parametrize("path", ELSEWHERE)
async def test_all_other_paths_are_not_found(gateway: RunningGateway, path: str) -> None:
    for method in METHODS:
        for person in ("ada", "root", ""):
            answer = await gateway.ask(
                person, method, path, b"{}" if method in ("POST", "PUT", "PATCH") else None
            )
            assert answer.status == 404, (method, path, person, answer)


async def test_a_handler_that_says_nothing_about_its_access_is_refused(gateway: RunningGateway) -> None:
    for _, handler in list_rules(gateway.app.web_app.default_router):
        assert getattr(handler, "access", "none") in (
            "person", "kernel", "session", "kernelspec", "admin", "open", "none",
        )  # fmt: skip

    class Silent:
        access = ""

    authorizer = gateway.app.authorizer
    authorizer.log.disabled = True
    handler: Any = Silent()
    handler.path_kwargs = {}
    assert not await authorizer.is_authorized(handler, None, "read", "kernels")


async def test_no_caller_can_fill_the_memory(gateway: RunningGateway) -> None:
    assert gateway.app.max_body_size == 1 << 20


async def test_options_and_probes_are_open(gateway: RunningGateway) -> None:
    assert (await gateway.ask("", "GET", "/api")).status == 200
    for path in ("/api/kernels", "/api/sessions", "/api/kernelspecs"):
        assert (await gateway.ask("", "OPTIONS", path)).status in (200, 204)


async def test_lists_show_ones_own_only(gateway: RunningGateway) -> None:
    adas, eves = await gateway.start("ada"), await gateway.start("eve")
    session = await gateway.open_session("ada")
    other = await gateway.open_session("eve")
    assert session["id"] != other["id"]  # both have Untitled.ipynb
    assert (await gateway.open_session("ada"))["id"] == session["id"]

    async def ids(person: str, path: str) -> set[str]:
        return {each["id"] for each in (await gateway.ask(person, "GET", path)).json}

    assert await ids("ada", "/api/kernels") == {adas, session["kernel"]["id"]}
    assert (
        await ids("eve", "/api/kernels")
        == await ids("eve", "/api/kernels?all=1")
        == {eves, other["kernel"]["id"]}
    )
    assert await ids("ada", "/api/sessions") == {session["id"]}
    assert await ids("eve", "/api/sessions?all=1") == {other["id"]}
    assert await ids("root", "/api/kernels") == await ids("root", "/api/sessions") == set()
    listed = (await gateway.ask("root", "GET", "/api/kernels?all=1")).json
    assert {each["id"]: each["user"] for each in listed}[adas] == "ada"
    assert len(await ids("root", "/api/sessions?all=1")) == 2
    everything = b"".join(gateway.received["eve"])
    for secret in (b"ada", adas.encode(), session["id"].encode(), session["kernel"]["id"].encode()):
        assert secret not in everything


async def test_ids_of_others_in_bodies_do_not_exist(gateway: RunningGateway) -> None:
    adas = await gateway.start("ada")
    own = await gateway.open_session("eve", "mine.ipynb")
    unknown = str(uuid.uuid4())
    texts = []
    for kernel_id in (adas, unknown):
        session = {"path": "a.ipynb", "type": "notebook", "kernel": {"id": kernel_id, "name": "roosted"}}
        for method, path, body in (
            ("POST", "/api/sessions", session),
            ("PATCH", f"/api/sessions/{own['id']}", {"kernel": {"id": kernel_id}}),
        ):
            answer = await gateway.ask("eve", method, path, body)
            assert answer.status == 404, answer
            texts.append(answer.body.replace(kernel_id.encode(), b"ID"))
    assert len(set(texts)) == 1
    for body in ({"kernel_id": adas}, {"env": {"KERNEL_ID": adas}}, {"env": {"KERNEL_ID": adas.upper()}}):
        assert (await gateway.ask("eve", "POST", "/api/kernels", {"name": "roosted", **body})).status == 404
    assert (
        await gateway.ask("ada", "POST", "/api/kernels", {"name": "roosted", "env": {"KERNEL_ID": adas}})
    ).status == 409
    again = await gateway.ask("ada", "POST", "/api/kernels", {"name": "roosted", "kernel_id": adas})
    assert (again.status, again.json["id"]) == (201, adas)
    await gateway.ask("ada", "DELETE", f"/api/kernels/{adas}")
    ended = {"name": "roosted", "kernel_id": adas}
    assert (await gateway.ask("eve", "POST", "/api/kernels", ended)).status == 404
    assert (await gateway.ask("eve", "GET", f"/roost/api/kernels/{adas}")).status == 404


async def test_a_free_id_may_be_chosen(gateway: RunningGateway) -> None:
    chosen = str(uuid.uuid4())
    assert await gateway.start("ada", env={"KERNEL_ID": chosen}) == chosen
    for wrong in ("x", "../../etc", chosen.replace("-", ""), "a" * 5000):
        answer = await gateway.ask("ada", "POST", "/api/kernels", {"name": "roosted", "kernel_id": wrong})
        assert answer.status == 400, answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b"\xff",
        b'{"name": 1}',
        b'{"name": ["a"]}',
        b'{"env": []}',
        b'{"kernel_id": {}}',
    ],
)
async def test_odd_bodies_get_a_clear_answer(gateway: RunningGateway, body: bytes) -> None:
    answer = await gateway.ask("ada", "POST", "/api/kernels", body)
    assert answer.status in (400, 403), answer  # the default kernelspec is Jupyter's own
    answer = await gateway.ask("ada", "POST", "/api/sessions", body)
    assert answer.status == 400, answer


async def test_a_forged_name_is_refused(gateway: RunningGateway) -> None:
    for path, body in (
        ("/api/kernels", {"name": "roosted", "env": {"KERNEL_USERNAME": "ada"}}),
        (
            "/api/sessions",
            {"path": "x", "type": "y", "kernel": {"name": "roosted"}, "env": {"KERNEL_USERNAME": "ada"}},
        ),
    ):
        answer = await gateway.ask("eve", "POST", path, body)
        assert (answer.status, "leave it out" in answer.json["message"]) == (403, True), answer
    assert (await gateway.ask("eve", "GET", "/api/me", headers={"X-Forwarded-User": "ada"})).json["identity"][
        "username"
    ] == "eve"


async def test_path_tricks_reach_nothing(gateway: RunningGateway) -> None:
    adas = await gateway.start("ada")
    for path in (
        f"/api/kernels/{adas}%2finterrupt", f"/api/kernels/{adas}/", f"/api/kernels//{adas}", f"//api/kernels/{adas}",
        f"/api/kernels/{adas}%00", f"/api/kernels/{adas.upper()}", f"/api/kernels/../kernels/{adas}",
        f"/api/kernels/{adas}?kernel_id=x", f"/roost/api/kernels/{adas}?token=", f"/api/kernels/{adas};channels",
        "/kernelspecs/..%2froosted/logo-64x64.png", "/kernelspecs/roosted/logo-..%2fkernel.json",
        "/kernelspecs/roosted/logo-64x64.png%2f..%2fkernel.json", "/api/kernelspecs/..%2froosted",
        "/api/kernelspecs/plain", "/kernelspecs/plain/logo-64x64.png",
    ):  # fmt: skip
        for method in ("GET", "DELETE"):
            answer = await gateway.ask("eve", method, path)
            assert answer.status in (404, 405), (method, path, answer)
    assert (await gateway.ask("ada", "GET", f"/api/kernels/{adas}")).status == 200


async def test_kernelspecs_show_what_a_notebook_needs(gateway: RunningGateway) -> None:
    adas = (await gateway.ask("ada", "GET", "/api/kernelspecs")).json
    eves = (await gateway.ask("eve", "GET", "/api/kernelspecs?user=ada")).json
    assert adas["kernelspecs"].keys() == {"roosted", "private"}
    assert eves["kernelspecs"].keys() == {"roosted"}
    assert eves["default"] in eves["kernelspecs"]
    named = (await gateway.ask("root", "GET", "/api/kernelspecs?user=eve")).json
    assert named["kernelspecs"].keys() == {"roosted"}
    spec = eves["kernelspecs"]["roosted"]
    assert spec["spec"].keys() == {"argv", "env", "display_name", "language", "interrupt_mode", "metadata"}
    assert (spec["spec"]["argv"], spec["spec"]["env"]) == ([], {})
    assert spec["resources"] == {"logo-64x64": "/kernelspecs/roosted/logo-64x64.png"}
    assert "secret-host" not in json.dumps([adas, eves])


async def test_a_plain_kernelspec_and_one_of_others_do_not_start(gateway: RunningGateway) -> None:
    for person, name, status in (("ada", "plain", 403), ("eve", "private", 403), ("ada", "none", 404)):
        for path, body in (
            ("/api/kernels", {"name": name}),
            ("/api/sessions", {"path": "x", "type": "y", "kernel": {"name": name}}),
        ):
            answer = await gateway.ask(person, "POST", path, body)
            assert answer.status == status, answer
    assert [each["what"] for each in gateway.audit if each["outcome"] == "refused"] == ["start"] * 6


async def test_a_backend_on_one_account_needs_the_operators_word(folder: Path, service: FakeService) -> None:
    async with run_gateway(folder, "c.RoostExtension.warm_up = False") as gateway:
        answer = await gateway.ask("ada", "POST", "/api/kernels", {"name": "roosted"})
        assert (answer.status, "shared_accounts" in answer.json["message"]) == (403, True)
        assert (await gateway.ask("ada", "GET", "/api/kernelspecs")).json == {
            "default": "",
            "kernelspecs": {},
        }


@pytest.mark.parametrize(
    "text",
    ["{", '{"metadata": {"kernel_provisioner": {"provisioner_name": "roost", "config": [1]}}}'],
)
async def test_a_malformed_kernelspec_is_none(gateway: RunningGateway, folder: Path, text: str) -> None:
    file = folder / "kernels" / "broken" / "kernel.json"
    file.parent.mkdir()
    file.write_text(text)
    assert (await gateway.ask("ada", "POST", "/api/kernels", {"name": "broken"})).status == 404
    assert (await gateway.ask("ada", "GET", "/api/kernelspecs/broken")).status == 404
    listed = (await gateway.ask("ada", "GET", "/api/kernelspecs")).json["kernelspecs"]
    assert listed.keys() == {"roosted", "private"}


async def test_a_start_carries_its_own_variables_only(
    gateway: RunningGateway, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    del service.answers["start"]
    await gateway.start("ada", env={"KERNEL_CPUS": "2", "FOO": "1"})
    await gateway.open_session("eve", "notes/Untitled.ipynb")
    by_user = {each.owner.user: each for each in service.called("start")}
    assert by_user.keys() == {"ada", "eve"}
    assert by_user["ada"].env["KERNEL_CPUS"] == "2"
    assert by_user["eve"].env["JPY_SESSION_NAME"] == "notes/Untitled.ipynb"
    for start in by_user.values():
        assert not {"SECRET_OF_THE_GATEWAY", "FOO"} & start.env.keys()


async def test_a_gateway_that_ends_leaves_its_kernels_and_their_people_to_the_next_one(
    folder: Path, service: FakeService
) -> None:
    del service.answers["start"]
    async with run_gateway(folder) as first:
        adas = await first.start("ada", env={"KERNEL_CPUS": "2"})
        session = await first.open_session("eve", "notes.ipynb")
        await first.app.kernel_manager.shutdown_all()
        assert service.called("stop") == []
        async with run_gateway(folder) as second:
            manager = second.app.kernel_manager
            await until(lambda: len(manager.list_kernel_ids()) == 2, "both kernels are adopted", 20, 0.05)
            await until(lambda: not manager.starts.pending, "both adoptions are over", 20, 0.05)
            assert [each["id"] for each in (await second.ask("ada", "GET", "/api/kernels")).json] == [adas]
            assert [each["id"] for each in (await second.ask("eve", "GET", "/api/sessions")).json] == [
                session["id"]
            ]
            assert (await second.ask("eve", "GET", f"/api/kernels/{adas}")).status == 404
            assert {each.owner.user for each in service.called("adopt")} == {"ada", "eve"}
            env = read_launch_arguments(manager.get_kernel(adas))["env"]
            assert (env["KERNEL_CPUS"], env["KERNEL_USERNAME"]) == ("2", "ada")
            assert "SECRET_OF_THE_GATEWAY" not in env
            del second.app.gateway.own._records[adas]  # a kernel whose person is not known
            assert (await second.ask("ada", "GET", f"/api/kernels/{adas}")).status == 404
            assert (await second.ask("root", "GET", f"/api/kernels/{adas}?all=1")).status == 200


async def test_caps_count_all_starts_in_one_step(folder: Path, service: FakeService) -> None:
    config = CONFIG + "c.RoostGateway.max_kernels_per_user = 2\nc.RoostGateway.max_kernels = 3\n"
    async with run_gateway(folder, config) as gateway:
        asked = [gateway.ask("ada", "POST", "/api/kernels", {"name": "roosted"}) for _ in range(20)]
        statuses = sorted(each.status for each in await asyncio.gather(*asked))
        assert statuses == [201] * 2 + [429] * 18
        first = await gateway.start("eve")
        answer = await gateway.ask("eve", "POST", "/api/kernels", {"name": "roosted"})
        assert (answer.status, "max_kernels" not in answer.json["message"]) == (429, True)
        assert b"ada" not in answer.body
        del gateway.app.gateway.own._records[first]  # a kernel whose person is not known
        assert (await gateway.ask("eve", "POST", "/api/kernels", {"name": "roosted"})).status == 429
        await gateway.ask("root", "DELETE", f"/api/kernels/{first}?all=1")
        await gateway.start("eve")


async def test_a_refusal_of_the_service_is_a_status(gateway: RunningGateway, service: FakeService) -> None:
    for problem, status in (
        (LimitExceeded("Too many."), 403),
        (NoNodeEver("No."), 400),
    ):
        service.answers["start"] = problem
        gateway.app.kernel_manager.answer_after_s = 20.0
        for path, body in (
            ("/api/kernels", {"name": "roosted"}),
            ("/api/sessions", {"path": "x", "type": "y", "kernel": {"name": "roosted"}}),
        ):
            answer = await gateway.ask("eve", "POST", path, body)
            assert answer.status == status, answer
    assert (await gateway.ask("eve", "GET", "/api/kernels")).json == []
    assert gateway.app.gateway.own.records == {}


async def test_a_kernel_that_comes_as_its_client_goes_is_ended(
    gateway: RunningGateway, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    del service.answers["start"]
    manager = gateway.app.kernel_manager
    manager.answer_after_s = 20.0

    async def go(_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(PendingStart, "open", go)
    with pytest.raises(asyncio.CancelledError):
        await manager.start_for("ada", "roosted")
    assert (manager.list_kernel_ids(), manager.starts.pending, gateway.app.gateway.own.records) == (
        [],
        {},
        {},
    )
    (start,) = service.called("start")
    assert {each.kernel_id for each in service.called("stop")} == {start.kernel_id}


async def test_a_start_without_a_person_is_refused(gateway: RunningGateway) -> None:
    for start in (
        gateway.app.kernel_manager.start_kernel(kernel_name="roosted"),
        gateway.app.kernel_manager.start_kernel(kernel_name="roosted", kernel_id=str(uuid.uuid4()), env={}),
    ):
        with pytest.raises(HTTPError, match="does not know for whom"):
            await start


async def test_web_sites_need_leave_where_a_browser_sends_the_login(
    folder: Path, service: FakeService
) -> None:
    config = (
        CONFIG
        + f"""
c.RoostGateway.users = "header"
c.ServerApp.sock = {str(folder / "s")!r}
c.ServerApp.sock_mode = "0666"
c.ServerApp.allow_origin = "https://good.example"
"""
    )
    async with run_gateway(folder, config) as gateway:
        assert gateway.app.sock_mode == "0660"
        ada = {"X-Forwarded-User": "ada"}
        kernel_id = (await gateway.ask("", "POST", "/api/kernels", {"name": "roosted"}, headers=ada)).json[
            "id"
        ]
        for origin, status in (
            ("https://good.example", 0),
            ("https://evil.example", 403),
            ("null", 403),
            (f"http://127.0.0.1:{gateway.port}", 403),
            ("https://good.example.evil.example", 403),
        ):
            for method, path, body, good in (
                ("GET", "/api/kernels", None, 200),
                ("POST", "/api/kernels", {"name": "roosted"}, 201),
                ("GET", f"/api/kernels/{kernel_id}/channels", None, 101),
            ):
                answer = await gateway.ask("", method, path, body, headers={**ada, "Origin": origin})
                assert answer.status == (status or good), (origin, method, path, answer)
        token = {"Authorization": f"token {gateway.tokens['ada']}"}
        assert (await gateway.ask("", "GET", "/api/kernels", headers=token)).status == 401
        assert (await gateway.ask("", "GET", f"/api/kernels?token={gateway.tokens['ada']}")).status == 401
        both = {**ada, "Authorization": f"token {gateway.tokens['root']}"}
        assert (await gateway.ask("", "GET", "/api/me", headers=both)).json["identity"]["username"] == "ada"
        assert (await gateway.ask("", "GET", "/api/me", headers={"X-Forwarded-User": "Ada"})).status == 403


async def test_trust_shares_all_kernels_but_no_web_site_may_use_it(
    folder: Path, service: FakeService
) -> None:
    async with run_gateway(folder, CONFIG + "c.RoostGateway.users = 'trust'") as gateway:
        body = {"name": "roosted", "env": {"KERNEL_USERNAME": "ada"}}
        kernel_id = (await gateway.ask("", "POST", "/api/kernels", body)).json["id"]
        assert gateway.app.gateway.own.records[kernel_id].user == "ada"
        assert [each["id"] for each in (await gateway.ask("", "GET", "/api/kernels")).json] == [kernel_id]
        body["env"]["KERNEL_USERNAME"] = "eve"
        assert (await gateway.ask("", "POST", "/api/kernels", {**body, "name": "private"})).status == 403
        assert (await gateway.ask("", "GET", "/api/kernelspecs?user=eve")).json["kernelspecs"].keys() == {
            "roosted"
        }
        evil = {"Origin": "https://evil.example"}
        assert (await gateway.ask("", "POST", "/api/kernels", body, headers=evil)).status == 403
        assert (
            await gateway.ask("", "GET", f"/api/kernels/{kernel_id}/channels", headers=evil)
        ).status == 403
        rebound = {"Host": "evil.example"}
        assert (await gateway.ask("", "GET", "/api/kernels", headers=rebound)).status == 403


async def test_a_removed_token_ends_its_websockets(gateway: RunningGateway, folder: Path) -> None:
    sockets = {}
    for person in ("ada", "eve"):
        kernel_id = await gateway.start(person)
        request = HTTPRequest(
            f"ws://127.0.0.1:{gateway.port}/api/kernels/{kernel_id}/channels",
            headers={"Authorization": f"token {gateway.tokens[person]}"},
        )
        sockets[person] = await websocket_connect(request)
    await Channels.check_all()
    TokenFile().remove("ada")
    await Channels.check_all()

    async def read_until_closed() -> int | None:
        while await sockets["ada"].read_message() is not None:
            pass
        code: int | None = sockets["ada"].close_code
        return code

    assert await asyncio.wait_for(read_until_closed(), allow_s(10)) == 1008
    assert sockets["eve"].close_code is None
    for each in sockets.values():  # also the one that the gateway has closed
        each.close()


async def test_the_operator_ends_the_kernels_that_are_left(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = gateway.app.kernel_manager
    adas = {await gateway.start("ada"), await gateway.start("ada")}
    eves = await gateway.start("eve")
    end = manager.shutdown_kernel

    async def end_all_of_ada(kernel_id: str) -> None:
        """End also the kernels that the operator comes to next, as their person may do."""
        assert kernel_id in manager
        for each in adas:
            await end(each)

    server = open_socket(manager, "gateway")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(manager, "shutdown_kernel", end_all_of_ada)
            assert set(await asyncio.to_thread(stop_kernels, "ada")) == adas
        assert {each["id"] for each in await asyncio.to_thread(list_kernels)} == {eves}
    finally:
        server.stop()


async def test_the_audit_file_says_who_did_what(gateway: RunningGateway) -> None:
    adas = await gateway.start("ada", env={"KERNEL_WORKING_DIR": "/secret/folder"})
    await gateway.ask("", "GET", "/api/kernels", headers={"Authorization": "token unknown-token"})
    await gateway.ask("", "GET", "/api/kernels", headers={"Authorization": "token unknown-token"})
    await gateway.ask("root", "DELETE", f"/api/kernels/{adas}?all=1")
    gateway.app.kernel_manager.keep_reason(adas, "Nobody had used it.")
    lines = gateway.audit
    assert [(each["what"], each["outcome"]) for each in lines] == [
        ("start", "done"), ("unknown token", "refused"), ("admin", "done"), ("end", "done"),
        ("culled", "done"),
    ]  # fmt: skip
    start, _, admin, end, culled = lines
    assert (start["person"], start["kernelspec"], start["backend"], start["kernel"]) == (
        "ada",
        "roosted",
        "local",
        adas,
    )
    assert (admin["person"], admin["kernel"]) == ("root", adas)
    assert (end["person"], end["kernel"]) == ("ada", adas)
    assert (culled["person"], culled["sentence"]) == ("ada", "Nobody had used it.")
    text = json.dumps(lines)
    for secret in (*gateway.tokens.values(), "unknown-token", "/secret/folder"):
        assert secret not in text
    assert (gateway.app.gateway.audit.path.stat().st_mode & 0o777) == 0o640
