"""Notebooks on a cluster whose parts fail: what the worlds of all cluster managers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from managers import kernelspecs
from notebook import Notebook

from roost.scheduler.client.client import Client, connect
from roost.scheduler.service.messages import Kernel


class ClusterWorld:
    """Notebooks of `backend` with roost's service in the runtime folder `home`. `options` are those of all kernels."""

    def __init__(
        self, backend: str, home: Path, folder: Path, argv: Sequence[str] = (), **options: Any
    ) -> None:
        self.home = home
        self.folder = folder
        self.opened: list[Notebook] = []
        self._config = {"backend": backend, **options}
        self._argv = {"argv": list(argv)} if argv else {}

    def service(self) -> Client:
        return connect(self._config["backend"])

    def notebook(self, **config: Any) -> Notebook:
        """Return a notebook that is not open yet."""
        notebook = Notebook("roosted")
        notebook.manager.kernel_spec_manager = kernelspecs(
            self.folder / str(len(self.opened)), config={**self._config, **config}, **self._argv
        )
        self.opened.append(notebook)
        return notebook

    async def open(self, **config: Any) -> Notebook:
        """Open a notebook with this configuration. Its variable `mine` is 42."""
        notebook = self.notebook(**config)
        await notebook.open()
        await notebook.run("import os, time; mine = 42")
        return notebook

    async def running(self, *notebooks: Notebook) -> list[Kernel]:
        """Check that these kernels run and keep their variables. Return them as the service knows them."""
        for notebook in notebooks:
            assert await notebook.value("mine") == "42"
        kernels = [await self.service().kernel(notebook.manager.kernel_id) for notebook in notebooks]
        assert [kernel.state for kernel in kernels] == ["running"] * len(kernels)
        return kernels


@contextmanager
def show_logs(home: Path) -> Iterator[None]:
    """Print the ends of the service's logs if the block fails."""
    try:
        yield
    except BaseException:
        for log in home.glob("scheduler*/log*"):
            print(f"--- {log}", *log.read_text().splitlines()[-80:], sep="\n")
        raise
