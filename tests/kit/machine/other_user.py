"""A process of another Unix user, which claims names in the abstract namespace of sockets. Only root can start it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from roost.testing.deadlines import allow_s

OTHER_USER = 65534
_CLAIM = """
import json, os, resource, socket, sys

names, user = json.loads(sys.stdin.readline()), int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (len(names) + 100,) * 2)
os.setgroups([])
os.setgid(user)
os.setuid(user)
held = []
for name in names:
    try:
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].bind("\\0" + name)
        held[-1].listen()
    except OSError:
        pass
print(len(held), flush=True)
sys.stdin.read()
"""


@contextmanager
def claimed_by_another_user(names: Sequence[str]) -> Iterator[int]:
    """Hold these names as another user while the block runs, and yield that process's pid."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-S", "-c", _CLAIM, str(OTHER_USER)]
    with subprocess.Popen(command, cwd="/", stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(names), file=process.stdin, flush=True)
            assert int(process.stdout.readline()) == len(names)
            yield process.pid
        finally:
            process.stdin.close()
            process.wait(allow_s(60))
