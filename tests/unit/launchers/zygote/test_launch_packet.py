"""Packets with descriptors."""

from __future__ import annotations

import os
import socket

import pytest

from roost.launchers.zygote.launch_packet import receive


@pytest.mark.parametrize("count", [0, 1, 7, 16])
def test_no_received_descriptor_is_inheritable(count: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pipes = [os.pipe() for _ in range(count)]
    with ours, theirs:
        socket.send_fds(ours, [b"packet"], [reader for reader, _ in pipes])
        packet, fds = receive(theirs)
    assert packet == b"packet"
    assert len(fds) == count
    assert [fd for fd in fds if os.get_inheritable(fd)] == []
    for (reader, writer), fd in zip(pipes, fds, strict=True):
        assert os.path.sameopenfile(reader, fd)
        for each in (reader, writer, fd):
            os.close(each)


def test_a_closed_connection_is_an_empty_packet() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        assert receive(theirs) == (b"", [])
