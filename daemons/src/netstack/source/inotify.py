"""inotify(7) for a folder tree: a wake-up that something changed, and where to look.

An event is a hint where to look, never what is there. Where hints do not suffice (folders, an overflow) all is looked
at. A file that was just created is mostly still being written: who writes it will close it, so the wake-up for its mere
being there comes later.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400
CLOSE_WRITE, MOVE_SELF, ONLYDIR = 0x8, 0x800, 0x01000000
IS_FOLDER, OVERFLOW, IGNORED = 0x40000000, 0x4000, 0x8000
NAMELESS = IS_FOLDER | OVERFLOW | IGNORED | DELETE_SELF | MOVE_SELF
"""Events after which no file's name says enough."""
HEADER = struct.Struct("=iIII")
WRITING_S = 0.02
"""How long a new file may be written before it is looked at (a link is whole at once, and nobody closes it)."""
MASK = CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | ONLYDIR

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Sets `changed` whenever a file below one of `roots` is written, moved or removed."""

    def __init__(self, roots: tuple[Path, ...]) -> None:
        self.changed = asyncio.Event()
        self._named: set[str] | None = None
        self._roots = roots
        self._folders: dict[int, str] = {}
        """By the number of their watch."""
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        asyncio.get_running_loop().add_reader(self._fd, self._wake)

    def watch_tree(self) -> None:
        """Watch every folder that is there now; watching one twice is the same as once."""
        for root in self._roots:
            for folder, _, _ in os.walk(root):
                watch = _libc.inotify_add_watch(self._fd, os.fsencode(folder), MASK)
                if watch >= 0:
                    self._folders[watch] = folder
                elif ctypes.get_errno() == errno.ENOSPC:  # a silent source would be worse
                    raise OSError(errno.ENOSPC, f"no inotify watch left for {folder} (fs.inotify.max_user_watches)")

    def take(self) -> set[str] | None:
        """Paths of the files to look at since the last call; None: all, folders too."""
        named, self._named = self._named, set()
        return named

    def _wake(self) -> None:
        events = [event for event in _events(os.read(self._fd, 1 << 16)) if not _half_written(event)]
        if not events:
            return
        named = self._names(events)
        if all(mask & CREATE and not mask & IS_FOLDER for _, mask, _ in events):
            asyncio.get_running_loop().call_later(WRITING_S, self._tell, named)
        else:
            self._tell(named)

    def _names(self, events: Iterable[tuple[int, int, str]]) -> set[str] | None:
        named = set()
        for watch, mask, name in events:
            hidden = name.startswith(".")  # "..data": names that link through it change
            if watch not in self._folders or mask & NAMELESS or hidden:
                return None
            named.add(f"{self._folders[watch]}/{name}")
        return named

    def _tell(self, named: set[str] | None) -> None:
        self._named = None if named is None or self._named is None else self._named | named
        self.changed.set()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


def _half_written(event: tuple[int, int, str]) -> bool:
    """A hidden file that is about to be moved to its name. To look now would only delay the look at that."""
    _, mask, name = event
    return name.startswith(".") and not mask & (MOVED_TO | IS_FOLDER)


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """Watch, mask and name of each struct inotify_event."""
    at = 0
    while at < len(data):
        watch, mask, _, length = HEADER.unpack_from(data, at)
        at += HEADER.size
        yield watch, mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))
        at += length
