"""A command for a Docker engine of one's own: `PYTHONPATH=tests python -m kit.clusters.docker_engine --help`."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from . import podman
from .build import IMAGE, build, install, why_not, why_not_build
from .engine import DockerEngine


def main() -> int | str | None:
    parser = argparse.ArgumentParser(prog="docker_engine", description="a Docker engine on this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="install Debian's packages and make the image of kernels, once")
    commands.add_parser("up", help="start an engine that lasts until Ctrl-C")
    if parser.parse_args().command == "build":
        install()
        podman.install()
        if reason := why_not_build():
            return reason
        build()
        return None
    if reason := why_not():
        return reason
    with DockerEngine() as engine, suppress(KeyboardInterrupt):
        print(f"DOCKER_HOST={engine.address} docker run --rm {IMAGE} id")
        print("Ctrl-C ends the engine.", flush=True)
        sys.stdin.read()
    return None


if __name__ == "__main__":
    sys.exit(main())
