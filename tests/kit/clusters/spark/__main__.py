"""A command that installs Spark for the tests: `PYTHONPATH=tests python -m kit.clusters.spark`."""

from __future__ import annotations

import sys

from kit.clusters import kubelets

from . import build, image


def main() -> str | None:
    try:
        build.build()
        if reason := kubelets.why_not():
            print(f"no image with Spark is built: {reason}")
        else:
            image.build()
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main())
