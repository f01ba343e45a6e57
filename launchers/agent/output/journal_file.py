"""The older part of a journal, in a file: a ring of blocks, each with some consecutive entries.

The file has no name, so nothing is left when the agent ends. It lies where temporary files do (`TMPDIR`). A block is
the length of a list in 8 bytes, the list as JSON, and the parts of all messages. The list describes the messages.
"""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """A message in a journal. `parts` are those after its signature; `number` counts a kernel's messages from 1."""

    number: int
    msg_id: str
    request_id: str
    parts: tuple[bytes, ...]
    size_bytes: int
    kind: str
    ends_request: bool


@dataclass(frozen=True, slots=True)
class _Block:
    first: int
    last: int
    offset: int
    length: int


class JournalFile:
    """A file with at most `limit_bytes` of entries. It is made when the first block is written."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._blocks: deque[_Block] = deque()
        self._file: int | None = None
        self._end = 0
        self._latest: tuple[int, list[Entry]] = (0, [])

    @property
    def first(self) -> int | None:
        """The number of the oldest entry; None if there is none."""
        return self._blocks[0].first if self._blocks else None

    @property
    def block_count(self) -> int:
        return len(self._blocks)

    def add(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write `entries` as a block. Return the entries that the journal has lost by this.

        The lost entries are the oldest ones, which were overwritten. If the block cannot be written, `entries` are lost
        too. If the block is larger than the file may be, all entries are lost.
        """
        data = _pack(entries)
        if len(data) > self._limit_bytes:
            return [*self._drop_all(), *entries]
        gone = []
        if self._end + len(data) > self._limit_bytes:
            while self._blocks and self._blocks[0].offset >= self._end:
                gone += self.drop_oldest()
            self._end = 0
        end = self._end + len(data)
        while self._blocks and self._end <= self._blocks[0].offset < end:
            gone += self.drop_oldest()
        try:
            self._write(data)
        except OSError as problem:
            log.warning("%d messages of a kernel are not kept: %s", len(entries), problem)
            return [*gone, *entries]
        self._blocks.append(_Block(entries[0].number, entries[-1].number, self._end, len(data)))
        self._end = end
        return gone

    def blocks_after(self, number: int) -> Iterator[list[Entry]]:
        """Return the blocks that have entries after this number, each of them read from the file."""
        for block in self._blocks:
            if block.last > number:
                yield self._load(block)

    def drop_oldest(self) -> list[Entry]:
        """Drop the oldest block, and return its entries. There must be one."""
        entries = self._load(self._blocks.popleft())
        self.forget_latest()
        return entries

    def forget_latest(self) -> None:
        """Free the memory of the block that was read last."""
        self._latest = (0, [])

    def close(self) -> None:
        self._blocks.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _drop_all(self) -> list[Entry]:
        gone = []
        while self._blocks:
            gone += self.drop_oldest()
        self._end = 0
        return gone

    def _write(self, data: bytes) -> None:
        if self._file is None:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        written = 0
        while written < len(data):
            written += os.pwrite(self._file, data[written:], self._end + written)

    def _load(self, block: _Block) -> list[Entry]:
        if self._latest[0] != block.first:  # a long message is read in many pieces
            assert self._file is not None
            data = b""
            while len(data) < block.length:
                read = os.pread(self._file, block.length - len(data), block.offset + len(data))
                if not read:
                    raise OSError(errno.EIO, "the file of a journal is shorter than it was")
                data += read
            self._latest = block.first, _unpack(data)
        return self._latest[1]


def _pack(entries: Sequence[Entry]) -> bytes:
    heads = []
    for each in entries:
        lengths = [*map(len, each.parts)]
        rest = each.size_bytes, each.kind, each.ends_request
        heads.append((each.number, each.msg_id, each.request_id, lengths, *rest))
    index = json.dumps(heads).encode()
    parts = (part for each in entries for part in each.parts)
    return b"".join((len(index).to_bytes(_LENGTH_BYTES, "big"), index, *parts))


def _unpack(data: bytes) -> list[Entry]:
    place = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
    entries = []
    for number, msg_id, request_id, lengths, *rest in json.loads(data[_LENGTH_BYTES:place]):
        ends = [*itertools.accumulate(lengths, initial=place)]
        parts = tuple(data[begin:end] for begin, end in itertools.pairwise(ends))
        entries.append(Entry(number, msg_id, request_id, parts, *rest))
        place = ends[-1]
    return entries
