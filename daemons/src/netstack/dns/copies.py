"""What the daemon knows and no table of the kernel's holds, kept in files for the next daemon of the same boot."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

from netstack.core.files import write_atomic

_log = logging.getLogger("dns")


class Kept(Protocol):
    changed: bool
    """Since the last `dump`."""

    def dump(self) -> str:
        """In any thread, while the owner goes on."""

    def load(self, text: str) -> None:
        """What `dump` gave. ValueError, and nothing is taken, if it is anything else."""


class Copy:
    """A file of `kept`. It does not outlive the boot, whose clock and endpoints it is by. `without`: what is missing
    if it cannot be read, for the log."""

    def __init__(self, kept: Kept, path: Path, without: str) -> None:
        self._kept = kept
        self._path = path
        self._without = without

    def load(self) -> None:
        """What an earlier daemon knew."""
        try:
            self._kept.load(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            _log.warning("%s: %s; %s", self._path, error, self._without)

    def save(self) -> None:
        """OSError if the disk refuses; the next call tries again."""
        if self._kept.changed:
            try:
                write_atomic(self._path, self._kept.dump())
            except OSError:
                self._kept.changed = True
                raise

    async def upkeep(self, every_s: float) -> None:
        """Save now and then, for ever, in a thread: no answer waits for it."""
        while True:
            await asyncio.sleep(every_s)
            with contextlib.suppress(OSError):  # no room in memory: the next turn tries again
                await asyncio.to_thread(self.save)
