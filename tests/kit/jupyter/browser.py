"""The real JupyterLab in headless Chromium, as a person uses it: open a notebook, run cells, read their outputs."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import os
import secrets
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server import JupyterServer, jupyter_server

from kit.machine import debian_packages
from kit.machine.daemons import wait_gone
from roost.provisioners import server_extension
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until_blocking

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

PYTHON = "ROOST_TEST_LAB_PYTHON"
"""The variable that names a Python with another JupyterLab and with roost, for the server."""
SCREENSHOTS = "ROOST_SCREENSHOTS"
"""The variable that names a folder for pictures of the pages."""
OPEN_S = 60.0
"""How long the Lab may take to load, and a server to end."""
_SERVER_S = 200.0
"""How long a server may take to start or to stop. It has shorter deadlines of its own, which say more."""
CELL_S = 30.0
LOST_AFTER_S = 1.0
"""A cell is dropped if its prompt is still `[ ]:` after this time."""
RESULT_S = 120.0
"""How long the result of a cell may take on a busy machine."""
_NOTEBOOKS_PER_PAGE = 5
_PERSON_MS = 500
"""How long a person looks at a new notebook before the first cell runs."""
EXTENSION = "--ServerApp.jpserver_extensions={'roost': True}"
"""The option that turns on roost's server extension, because an editable installation does not."""
_QUIET = (
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def install() -> None:
    """Install Chromium, unless it is there."""
    if _chromium() is None:
        debian_packages.install("chromium")


def why_not() -> str:
    """Return why no browser test can run here; empty if they can."""
    if _chromium() is None:
        return "Chromium is missing: apt-get install chromium"
    missing = [
        name for name in ("jupyterlab", "notebook", "playwright") if importlib.util.find_spec(name) is None
    ]
    return f"{', '.join(missing)} must be installed: pip install 'roost[browser]'" if missing else ""


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def prepare_lab(folder: Path) -> None:
    """Write roost's lab extension and a setting into a folder of JUPYTER_CONFIG_DIR and JUPYTER_PATH.

    An editable installation has the extension nowhere else. The setting stops the Lab's question about news.
    """
    (folder / "labextensions").mkdir()
    (folder / "labextensions" / "roost").symlink_to(Path(server_extension.__file__).with_name("labextension"))
    settings = folder / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))


@contextmanager
def running_server(
    notebooks: Path,
    *,
    program: str = "jupyterlab",
    options: Sequence[str] = (),
    port: int = 0,
    token: str = "",
) -> Iterator[JupyterServer]:
    """Start a Jupyter application from an event loop in a thread, and stop it at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server-of-the-browser", daemon=True)
    thread.start()

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(allow_s(_SERVER_S))

    python = os.environ.get(PYTHON, sys.executable)
    context = jupyter_server(
        notebooks, program=program, options=options, port=port, token=token, python=python
    )
    try:
        yield wait_for(context.__aenter__())
    finally:
        with suppress(RuntimeError):  # it did not start
            wait_for(context.__aexit__(None, None, None))
        wait_for(loop.shutdown_asyncgens())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(allow_s(OPEN_S))
        loop.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start headless Chromium, and end it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=_QUIET)
        try:
            yield browser
        finally:
            browser.close()


class RestartableLab:
    """A JupyterLab that ends and comes back on the same port, with the same token. `with` ends it for good."""

    def __init__(self, notebooks: Path, options: Sequence[str] = ()) -> None:
        self._port = free_port()
        self._notebooks = notebooks
        self._options = options
        self._token = secrets.token_urlsafe(16)
        self._running = ExitStack()
        self.server = self.start()

    def start(self) -> JupyterServer:
        server = running_server(self._notebooks, options=self._options, port=self._port, token=self._token)
        self.server = self._running.enter_context(server)
        return self.server

    def end(self, signum: int) -> None:
        """End the server by a signal, and wait until it has ended."""
        os.kill(self.server.pid, signum)
        assert wait_gone(self.server.pid, OPEN_S)
        self._running.close()

    def __enter__(self) -> RestartableLab:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()


class HeldRequests:
    """Requests of a page that do not reach the server before `release`."""

    def __init__(self, page: Page, method: str, path: str) -> None:
        self._method = method
        self._routes: list[Route] | None = []
        page.route(f"**/api/{path}*", self._take)

    def _take(self, route: Route) -> None:
        if self._routes is None or route.request.method != self._method:
            route.continue_()
        else:
            self._routes.append(route)

    @property
    def number(self) -> int:
        return len(self._routes or ())

    def release(self) -> None:
        """Let the held requests go to the server, and do not hold later ones."""
        for route in self._end():
            route.continue_()

    def cut(self) -> None:
        """Let the requests that are held fail, as without a network. Later ones go to the server."""
        for route in self._end():
            route.abort("connectionfailed")

    def _end(self) -> list[Route]:
        routes, self._routes = self._routes or [], None
        return routes


class Lab:
    """One page with the Lab. Cells and outputs are counted from 0."""

    def __init__(self, page: Page, server: JupyterServer) -> None:
        self.page = page
        page.set_default_timeout(allow_s(CELL_S * 1000))
        self._at = f"http://127.0.0.1:{server.port}"
        self._token = server.token

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Send one REST request under /api, and return the decoded answer."""
        return self._ask(method, f"api/{path}", body)

    def get(self, path: str) -> Any:
        """Send GET to any path, and return the decoded answer."""
        return self._ask("GET", path)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self._token}"}
        request = urllib.request.Request(f"{self._at}/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=allow_s(CELL_S)) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def end_kernels(self) -> None:
        """End all sessions and kernels of the server."""
        for session in self.api("GET", "sessions"):
            self.api("DELETE", f"sessions/{session['id']}")
        for kernel in self.api("GET", "kernels"):
            self.api("DELETE", f"kernels/{kernel['id']}")

    def hold(self, method: str, path: str) -> HeldRequests:
        """Hold requests of the page under /api. `path` may hold `*`."""
        return HeldRequests(self.page, method, path)

    def hold_session(self) -> HeldRequests:
        """Hold the requests for new sessions, so that a notebook appears and its kernel does not start."""
        return self.hold("POST", "sessions")

    def run_all(self) -> None:
        """Run all cells of the notebook in sight, by the menu."""
        self.page.locator(".lm-MenuBar-item").filter(has_text="Run").click()
        self.page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()

    def dialog(self, title: str) -> Locator:
        """Wait for a dialog, and return it."""
        dialog = self.page.locator(".jp-Dialog").filter(has_text=title)
        dialog.wait_for(timeout=allow_s(CELL_S * 1000))
        return dialog

    def visit(self, path: str) -> None:
        """Open a page of the server, authenticated by its token."""
        mark = "&" if "?" in path else "?"
        self.page.goto(f"{self._at}/{path}{mark}token={self._token}")

    def open(self, notebook: str = "") -> None:
        """Open the Lab with its launcher, or with a notebook."""
        self.visit(f"lab/tree/{notebook}?reset" if notebook else "lab?reset")
        shown = ".jp-NotebookPanel" if notebook else ".jp-Launcher"
        self.page.locator(shown).first.wait_for(timeout=allow_s(OPEN_S * 1000))

    def open_launcher(self) -> None:
        """Open another launcher."""
        self.page.locator('.jp-FileBrowser [data-command="launcher:create"]').click()
        self.page.locator(".jp-Launcher:visible").wait_for(timeout=allow_s(OPEN_S * 1000))

    def write_notebook(self, path: str, kernel: str, *sources: str) -> None:
        """Write a notebook with these code cells. `kernel` is the name of its kernelspec."""
        cells = [
            {
                "cell_type": "code",
                "id": f"cell-{i}",
                "source": source,
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            for i, source in enumerate(sources)
        ]
        metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
        content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        self.api("PUT", f"contents/{path}", {"type": "notebook", "content": content})

    def run_again(self, index: int) -> None:
        """Press Shift+Enter in a cell that has code already. This does not wait for the kernel."""
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")

    def card(self, kernel: str) -> Locator:
        """Return the launcher's card for notebooks. `kernel` is the display name of a kernelspec."""
        cards = self.page.locator(f'.jp-LauncherCard[data-category="Notebook"][title="{kernel}"]:visible')
        return cards.first

    def create_notebook(self, kernel: str) -> None:
        """Click the card of a kernel. Wait until the notebook has a session, and then for `_PERSON_MS`."""
        before = len(self.api("GET", "sessions"))
        self.card(kernel).click()
        self.cell(0).wait_for(timeout=allow_s(OPEN_S * 1000))
        self.wait_for_session(before + 1)

    def wait_for_session(self, number: int = 1) -> None:
        """Wait until the server has this number of sessions, and then for `_PERSON_MS`."""

        def has_them() -> bool:
            self.page.wait_for_timeout(20)  # requests that were held leave the page only meanwhile
            return len(self.api("GET", "sessions")) >= number

        until_blocking(has_them, f"the server has {number} sessions", OPEN_S)
        self.page.wait_for_timeout(_PERSON_MS)

    def status(self, holds: str = "") -> Locator:
        """Wait until roost's kernel status holds this text, and return its element."""
        status = self.page.locator(".roost-status")
        status.filter(has_text=holds).wait_for(timeout=allow_s(CELL_S * 1000), state="attached")
        return status

    def press(self, *keys: str) -> None:
        """Press keys. Equal ones come in one call: the Lab forgets the first key of a pair after a second."""
        for key, same in itertools.groupby(keys):
            count = len(list(same))
            if count > 1:
                self.page.keyboard.type(key * count)
            else:
                self.page.keyboard.press(key)

    def reload(self) -> None:
        """Load the page again, and wait until the notebook is in sight."""
        self.page.reload()
        self.cell(0).wait_for(timeout=allow_s(OPEN_S * 1000))

    def cell(self, index: int) -> Locator:
        """Return a code cell of the notebook in sight."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").nth(index)

    def run(self, index: int, code: str) -> None:
        """Type code into a cell and press Shift+Enter. This does not wait for the kernel."""
        editor = self.cell(index).locator(".cm-content")
        editor.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Shift+Enter")

    def prompt(self, index: int, text: str) -> None:
        """Wait until the prompt of a cell has this text, such as `[1]:`."""
        prompt = self.cell(index).locator(".jp-InputPrompt")
        prompt.filter(has_text=text).wait_for(timeout=allow_s(CELL_S * 1000))

    def prompt_of(self, index: int) -> str:
        """Return a cell's prompt as it is now."""
        return self.cell(index).locator(".jp-InputPrompt").inner_text()

    def text(self, index: int) -> str:
        """Return the text of a cell's outputs as it is now."""
        return self.cell(index).locator(".jp-Cell-outputArea").inner_text()

    def take(self, name: str) -> None:
        """Take a picture of the page, but only if `SCREENSHOTS` names a folder."""
        if folder := os.environ.get(SCREENSHOTS):
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def run_early(self, kernel: str, pause_ms: float = 0) -> bool:
        """Click the card of a kernel, and run `40 + 2` so many milliseconds after the notebook has appeared.

        Return whether the Lab drops the cell. Otherwise the cell may still wait.
        """
        self.card(kernel).click()
        self.cell(0).wait_for(timeout=allow_s(OPEN_S * 1000))
        if pause_ms:
            self.page.wait_for_timeout(pause_ms)
        self.run(0, "40 + 2")
        ran_at = time.monotonic()
        while self.prompt_of(0) == "[ ]:" and time.monotonic() - ran_at < LOST_AFTER_S:
            self.page.wait_for_timeout(20)
        return self.prompt_of(0) == "[ ]:"

    def count_lost(self, kernels: Sequence[str], pause_ms: float) -> int:
        """Run a cell early in a new notebook of each of these kernels. Return how many cells are lost.

        A cell is lost if the Lab drops it, and if it has no result after `RESULT_S`.
        """
        lost = 0
        for i, kernel in enumerate(kernels):
            if i % _NOTEBOOKS_PER_PAGE == 0:
                self.end_kernels()
                self.open()
            else:
                self.open_launcher()
            lost += self.run_early(kernel, pause_ms) or not self.has_result()
        self.end_kernels()
        return lost

    def has_result(self) -> bool:
        """Wait for the result of `run_early`. Return False if there is none after `RESULT_S`."""
        from playwright.sync_api import TimeoutError as NoResult

        try:
            self.output(0, "42", RESULT_S)
        except NoResult:
            print(f"no result after {RESULT_S:g} s; prompt {self.prompt_of(0)}", file=sys.stderr)
            return False
        return True

    def output(self, index: int, holds: str = "", within_s: float = CELL_S) -> str:
        """Wait until the outputs of a cell hold this text, and return their whole text."""
        area = self.cell(index).locator(".jp-Cell-outputArea")
        area.filter(has_text=holds).locator(".jp-OutputArea-output").first.wait_for(
            timeout=allow_s(within_s * 1000)
        )
        return self.text(index)


if __name__ == "__main__":
    install()
