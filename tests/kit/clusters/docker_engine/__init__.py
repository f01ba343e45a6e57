"""A real Docker engine on this machine, in namespaces and folders of its own.

    with DockerEngine() as engine:
        docker.APIClient(base_url=engine.address).containers()

The engine is Debian's dockerd as root. Its socket, images, networks and control groups are its own. The system's engine
is left alone. All its processes end with the test's, even if that is killed. It starts in five seconds.

    engine       the engine of one test, its faults, and what it leaves behind
       ├──▶ start_script    the shell script of its first process: network, mounts, dockerd
       │      └──▶ podman   Podman's service in the place of dockerd
       ├──▶ build           the packages that it needs, and the image of kernels, made once in a cache
       └──◀ registry        a registry of images beside it, with its program registry_server
"""

from .build import IMAGE
from .engine import DockerEngine, leftovers, why_not
from .registry import Registry
from .start_script import Program

__all__ = ["IMAGE", "DockerEngine", "Program", "Registry", "leftovers", "why_not"]
