"""The last-known-good folder: what was in force last, in the directory source's form, so that a daemon starts without
its API server from what it knew.

`<folder>/<want>/<00..3f>.json` (resources.Want.key: a kind, or what is wanted of it), each a `kind: List` of the
objects whose name hashes to that number. A change rewrites one such part, about 80 KB of 10,000 pods: a file an object
would need 10,000 fsyncs after a first list (minutes on an SD card), a file a kind 5 MB for every pod that comes or
goes. Parts change over in one rename, so a killed process leaves the old or the new one. `.complete` is written after
the first whole list: a folder without it says nothing about what is absent and is not used. 0700 and 0600: there may
be Secrets in it.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from netstack.core.errors import BadObject
from netstack.core.files import write_atomic
from netstack.core.ref import Ref
from netstack.source.parse import reference
from netstack.source.replica import Unsaved

PARTS = 64
COMPLETE = ".complete"


class LastGood:
    """OSError from any call passes: the disk is full or gone. ValueError: a part of the kind is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, kind: str) -> list[Mapping[str, Any]] | None:
        """The documents of a kind; None if there never was a whole list of it."""
        folder = self._folder(kind)
        if not self.complete(kind):
            return None
        return [item for path in sorted(folder.glob("*.json")) for item in _read(path).values()]

    def complete(self, kind: str) -> bool:
        return (self._folder(kind) / COMPLETE).exists()

    def clear(self, kind: str) -> None:
        """Know nothing of a kind, not even what is absent."""
        folder = self._folder(kind)
        (folder / COMPLETE).unlink(missing_ok=True)
        for path in folder.glob("*"):  # what a killed process was just writing as well
            path.unlink(missing_ok=True)

    def clear_others(self, kinds: Collection[str]) -> None:
        """Keep nothing of what is not wanted any more."""
        for folder in self.folder.iterdir() if self.folder.exists() else ():
            if folder.name not in kinds:
                self.clear(folder.name)
                folder.rmdir()

    def save(self, kind: str, unsaved: Unsaved) -> None:
        """Take in changes that follow what was saved before. Repeating it does no harm."""
        folder = self._folder(kind)
        for path in (self.folder, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        parts: dict[str, Unsaved] = defaultdict(dict)
        for ref, text in unsaved.items():
            parts[f"{zlib.crc32(ref.key.encode()) % PARTS:02x}.json"][ref] = text
        for name, changes in sorted(parts.items()):
            self._change(folder / name, changes)
        if not self.complete(kind):
            write_atomic(folder / COMPLETE, "", mode=0o600)

    def _change(self, path: Path, changes: Unsaved) -> None:
        old = _read(path) if path.exists() else {}
        items = {ref: json.dumps(item, separators=(",", ":")) for ref, item in old.items() if ref not in changes}
        items |= {ref: text.decode() for ref, text in changes.items() if text is not None}
        if not items:
            path.unlink(missing_ok=True)
            return
        lines = ",\n".join(items[ref] for ref in sorted(items))
        write_atomic(path, f'{{"apiVersion":"v1","kind":"List","items":[\n{lines}\n]}}\n', mode=0o600)

    def _folder(self, kind: str) -> Path:
        return self.folder / kind


def _read(path: Path) -> dict[Ref, Mapping[str, Any]]:
    try:
        return {reference(item): item for item in json.loads(path.read_text(encoding="utf-8"))["items"]}
    except (KeyError, TypeError, BadObject) as error:
        raise ValueError(f"{path}: {error}") from error
