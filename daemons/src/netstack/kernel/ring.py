"""The reading end of a BPF ring buffer (kernel/bpf/ringbuf.c), by mmap. One reader; nothing is lost while it keeps up.

The first page of the map holds how far we have read, the second how far programs have written, then the data, mapped
twice in a row so that no record is ever torn. A record begins with its length in 32 bits, of which the highest says
that its writer is not done, the next that it was thrown away; 32 more bits are the kernel's own.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import threading
from collections.abc import AsyncIterator

from netstack.kernel.bpf import Map

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER = 8
_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")


class Ring:
    """OSError if the kernel does not let us map it. `fileno` is readable when there is something to read."""

    def __init__(self, table: Map) -> None:
        self._table = table
        self._size = table.definition.entries
        self._consumed = mmap.mmap(table.fd, mmap.PAGESIZE)
        self._produced = mmap.mmap(table.fd, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._fence = threading.Lock()

    def fileno(self) -> int:
        return self._table.fd

    def close(self) -> None:
        self._consumed.close()
        self._produced.close()
        self._table.close()

    def read(self) -> list[bytes]:
        """Every record that is whole by now, oldest first; their room is free again."""
        (position,) = _POSITION.unpack_from(self._consumed, 0)
        (end,) = _POSITION.unpack_from(self._produced, 0)
        spans = []
        while position < end:
            at = mmap.PAGESIZE + position % self._size
            (length,) = _LENGTH.unpack_from(self._produced, at)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                spans.append((at + _HEADER, size))
            position += (size + _HEADER + 7) & ~7
        with self._fence:  # ARM may read ahead: no record is looked at before its length was seen to be final ...
            records = [self._produced[at : at + size] for at, size in spans]
        with self._fence:  # ... nor is its room given back before it was read
            _POSITION.pack_into(self._consumed, 0, position)
        return records

    async def batches(self, pace_s: float) -> AsyncIterator[list[bytes]]:
        """What there is to `read`, as it comes, for ever. Readable means: wait for `pace_s` without looking, that one
        wake-up may serve many."""
        loop = asyncio.get_running_loop()
        while True:
            readable = asyncio.Event()
            loop.add_reader(self.fileno(), readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self.fileno())
            await asyncio.sleep(pace_s)
            if records := self.read():
                yield records
