"""inotify(7) for a folder tree: a wake-up that something changed. What changed, a scan decides.

So a lost or merged event costs nothing but time, and the tree may change while it is being read. A file that was just
created is mostly still being written: who writes it will close it, so the wake-up for its mere being there comes later.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

MODIFY, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF = 0x2, 0x40, 0x80, 0x100, 0x200, 0x400
CLOSE_WRITE, ONLYDIR = 0x8, 0x01000000
IS_FOLDER = 0x40000000
HEADER = struct.Struct("=iIII")
WRITING_S = 0.02
"""How long a new file may be written before it is looked at (a link is whole at once, and nobody closes it)."""
MASK = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | ONLYDIR

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Sets `changed` whenever a file below one of `roots` is written, moved or removed."""

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self.changed = asyncio.Event()
        self._roots = roots
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        asyncio.get_running_loop().add_reader(self._fd, self._wake)

    def watch_tree(self) -> None:
        """Watch every folder that is there now; watching one twice is the same as once."""
        for root in self._roots:
            for folder, _, _ in os.walk(root):
                if _libc.inotify_add_watch(self._fd, os.fsencode(folder), MASK) < 0:
                    error = ctypes.get_errno()
                    if error == 28:  # ENOSPC: the limit of watches is reached; a silent source would be worse
                        raise OSError(error, f"no inotify watch left for {folder} (fs.inotify.max_user_watches)")

    def _wake(self) -> None:
        if all(mask & CREATE and not mask & IS_FOLDER for mask in _masks(os.read(self._fd, 1 << 16))):
            asyncio.get_running_loop().call_later(WRITING_S, self.changed.set)
        else:
            self.changed.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


def _masks(events: bytes) -> Iterator[int]:
    """What each struct inotify_event says."""
    at = 0
    while at < len(events):
        _, mask, _, length = HEADER.unpack_from(events, at)
        yield mask
        at += HEADER.size + length
