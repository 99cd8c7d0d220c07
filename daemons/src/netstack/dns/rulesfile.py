"""The agent's rules file as it stands on disk, and the last version of it that was whole.

Looked at (one stat, 1.5 us) before every batch of messages instead of watched: a question is then judged by rules at
least as new as itself, so a pod that starts right after its rules were written is not refused by yesterday's, and there
is no event to miss. A file that does not parse, or is gone, changes nothing; its predecessor stays in force, after a
restart too, from a copy of the proxy's own. The copy is written apart from the checks: it waits for the disk.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from netstack.core.errors import BadConfig
from netstack.core.files import write_atomic
from netstack.dns.rules import Rules, parse

_log = logging.getLogger("dns")


class RulesFile:
    """`rules` is what is in force; `error` says why the file on disk is not it, if so."""

    def __init__(self, path: Path, copy: Path) -> None:
        self.rules = Rules()
        self.loaded = False
        """Whether any rules were ever read: without, nothing may be concluded from a pod's absence."""
        self.error: str | None = f"{path}: not there yet"
        self._path = path
        self._copy = copy
        self._seen: tuple[int, int, int] | None = None
        self._unsaved: str | None = None
        with contextlib.suppress(OSError, UnicodeDecodeError, BadConfig):
            self._take(copy.read_text(encoding="utf-8"))

    def refresh(self) -> bool:
        """Read the file if it is another one than last time; True if the rules in force changed."""
        try:
            found = os.stat(self._path)
        except OSError as error:
            self._complain(f"{self._path}: {error.strerror}")
            return False
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return False
        try:
            text = self._path.read_text(encoding="utf-8")
            self._take(text)
        except (OSError, UnicodeDecodeError, BadConfig) as error:
            self._seen = seen
            self._complain(f"{self._path}: {error}")
            return False
        self._seen, self._unsaved, self.error = seen, text, None
        _log.info("rules of generation %d for %d pods", self.rules.generation, len(self.rules.ids))
        return True

    def save(self) -> None:
        """Keep what is in force for the next start. OSError if the disk refuses; the next call tries again."""
        if (text := self._unsaved) is not None:
            write_atomic(self._copy, text)
            if self._unsaved is text:
                self._unsaved = None

    def _take(self, text: str) -> None:
        self.rules = parse(text)
        self.loaded = True

    def _complain(self, error: str) -> None:
        if error != self.error:
            self.error = error
            _log.warning("%s; generation %d stays in force", error, self.rules.generation)
