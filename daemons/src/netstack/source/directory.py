"""The `directory` source: a folder of manifests, watched with inotify.

Every *.yaml, *.yml and *.json file below the folder counts, except names that begin with a dot (half-written
files). A file may hold several documents and `kind: List`. The rules of faith:

* A file that does not parse keeps all its last good objects; an object that is wrong keeps its own last good
  version, and the others in the file are taken. Both are reported in `Snapshot.broken` until they are mended.
* The last good objects of every file are kept in `keep`, so a restart in front of a broken file falls back on them.
* A folder that cannot be read, or is not there, has not deleted its objects: all of them stay. Only a file that is
  missing from a folder that was read has.
* The first of two files (in name order) that define one object wins; the second is reported.
* The status folder's `status` lies over the manifests' own, field by field of the first level.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from netstack.core.documents import load_all, same_text
from netstack.core.errors import BadObject
from netstack.core.files import write_atomic
from netstack.core.ref import Ref
from netstack.source.inotify import Inotify
from netstack.source.models import Object
from netstack.source.pace import Pace
from netstack.source.parse import parse, reference, vendor
from netstack.source.snapshot import Broken, Snapshot

SUFFIXES = (".yaml", ".yml", ".json")
RESCAN_S = 30.0
"""Look again this often even without an event: some file systems have none."""
ABSENT_S = 1.0
"""The same, while the folder cannot be read: nothing tells of its return."""

Stamp = tuple[int, int, int]
log = logging.getLogger("source")


Documents = dict[Ref, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Parsed:
    """An object as its file has it, the status that lies over it, both together, and what came of them."""

    raw: Mapping[str, Any]
    status: Any
    document: Mapping[str, Any]
    model: Object | None
    error: BadObject | None = None


@dataclass(slots=True)
class File:
    """One manifest file: its documents as last read, what stands in for those that are wrong, and what is wrong."""

    stamp: Stamp
    documents: Documents = field(default_factory=dict)
    fallback: Documents = field(default_factory=dict)
    errors: list[Broken] = field(default_factory=list)
    parsed: dict[Ref, Parsed] | None = None
    """What is in force of it; None: to be parsed."""
    refused: list[Broken] = field(default_factory=list)
    """Which of its documents are not."""


class DirectorySource:
    """See the module. `keep` may be None: then only memory remembers the last good text. `onlooker`: another process
    has this folder as its source; what it has kept is read, and nothing is written."""

    def __init__(
        self, manifests: Path, status: Path | None = None, keep: Path | None = None, *, onlooker: bool = False
    ) -> None:
        self._manifests = manifests
        self._status = status
        self._keep = keep
        self._onlooker = onlooker
        self._files: dict[str, File] = {}
        self._overlay: dict[str, File] = {}
        self._statuses: dict[Ref, Any] = {}
        self._parsed: dict[Ref, Parsed] = {}
        self._unreadable: tuple[Broken, ...] = ()
        self._snapshot = Snapshot()
        self._unsaved: set[str] = set()
        """Names of files that changed since `remember`."""
        self.refresh()
        self._forget()
        self.remember()

    @property
    def ready(self) -> bool:
        return True

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def written(self, ref: Ref) -> dict[str, Mapping[str, Any]]:
        """The files, by their names below the folder, in which the object stands, and how it stands there."""
        return {name: file.documents[ref] for name, file in sorted(self._files.items()) if ref in file.documents}

    def beside(self, ref: Ref) -> list[Ref]:
        """The other objects that stand in the same files."""
        found = {other for file in self._files.values() if ref in file.documents for other in file.documents}
        return sorted(found - {ref})

    def report(self) -> dict[str, Any]:
        problems = [{"kind": "folder", "reason": str(broken.error), "since": None} for broken in self._unreadable]
        return {
            "kind": "directory",
            "ready": True,
            "connected": not problems,
            "stale_since": None,
            "problems": problems,
        }

    def refresh(self, named: Collection[str] | None = None) -> bool:
        """Read what changed on disk since the last call, or only of the files `named`; True if the snapshot is another
        one."""
        unreadable, changed = self._unreadable, self._look(named)
        overlaid = self._look_over(named)
        if not changed and not overlaid and unreadable == self._unreadable:
            return False
        before, self._snapshot = self._snapshot, self._compose()
        for broken in self._snapshot.broken:
            if broken not in before.broken:
                log.error("%s", broken)
        self._unsaved |= changed
        return self._snapshot != before

    def save(self) -> None:
        """It is there: the folder is the truth."""

    def remember(self) -> None:
        """Keep what is good of every file that changed, as it is in force, for a later process."""
        while self._keep is not None and self._unsaved and not self._onlooker:
            name = self._unsaved.pop()
            self._remember(name, _kept(self._keep, name))

    def _forget(self) -> None:
        """What was kept of files that went while nobody looked: without the folder it would all be there again."""
        if self._keep is None or self._onlooker or self._unreadable:
            return
        known = {_kept(self._keep, name) for name in self._files}
        with contextlib.suppress(OSError):  # the next start tries again
            for path in self._keep.glob("*.yaml"):
                if path not in known:
                    path.unlink(missing_ok=True)

    def _look(self, named: Collection[str] | None) -> set[str]:
        """Names of the manifest files that are new, changed or gone."""
        try:
            changed = _scan(self._manifests, self._files, self._keep, None if self._unreadable else named)
        except OSError as error:
            if self._keep is not None and not self._files:
                self._files = _all_kept(self._keep)
            reason = f"cannot be read: {error.strerror}"
            bad = BadObject(Ref("folder", "", str(self._manifests)), "(content)", reason)
            self._unreadable = (Broken(str(self._manifests), bad, kept=bool(self._files)),)
            return set()
        self._unreadable = ()
        return changed

    def _look_over(self, named: Collection[str] | None) -> bool:
        """Whether any status is another one."""
        if self._status is None or not self._status.is_dir() or not _scan(self._status, self._overlay, None, named):
            return False
        before, self._statuses = self._statuses, {}
        for _, overlay in sorted(self._overlay.items(), reverse=True):  # the first of two wins, as among manifests
            self._statuses |= {ref: document.get("status") for ref, document in overlay.documents.items()}
        for file in self._files.values():
            if not all(same_text(self._statuses.get(ref), before.get(ref)) for ref in file.documents):
                file.parsed = None
        return True

    def _remember(self, name: str, path: Path) -> None:
        file = self._files.get(name)
        if file is None or not file.fallback:  # gone, or emptied
            path.unlink(missing_ok=True)
        else:
            items = list(file.fallback.values())
            kept = {"kind": "List", "metadata": {"name": name}, "items": items}
            write_atomic(path, json.dumps(kept, default=str), mode=0o600)

    async def watch(self) -> AsyncIterator[Snapshot]:
        roots = (self._manifests,) if self._status is None else (self._manifests, self._status)
        inotify, pace = Inotify(roots), Pace()
        try:
            inotify.watch_tree()
            inotify.take()
            self.refresh()
            yield self._snapshot
            self.remember()
            while True:
                try:
                    # not wait_for, which in Python 3.11 can swallow a cancellation
                    async with asyncio.timeout(ABSENT_S if self._unreadable else RESCAN_S):
                        await inotify.changed.wait()
                    await pace.turn()
                    named = inotify.take()
                except TimeoutError:
                    named = None
                inotify.changed.clear()
                if named is None:
                    inotify.watch_tree()
                if self.refresh(named):
                    yield self._snapshot
                self.remember()  # now that it is in force: a disk takes its time
        finally:
            inotify.close()

    def _compose(self) -> Snapshot:
        """The models of all files; of a file that did not change, those that it had."""
        parsed: dict[Ref, Parsed] = {}
        counted = 0
        files = sorted(self._files.items())
        for name, file in reversed(files):  # so the first of two that define one object wins
            if file.parsed is None:
                file.parsed, file.refused = self._parse(name, file)
            parsed |= file.parsed
            counted += len(file.parsed)
        broken = [*self._unreadable, *(wrong for _, file in files for wrong in file.errors + file.refused)]
        if counted > len(parsed):
            owners = {ref: name for name, file in reversed(files) for ref in file.documents}
            broken = [wrong for wrong in broken if owners.get(wrong.error.ref, wrong.file) == wrong.file]
            broken += _defined_twice(files, owners)
        self._parsed = parsed
        objects = {ref: item.model for ref, item in parsed.items() if item.model is not None}
        # without its namespace's labels policies would take a pod for another, and leave it open
        unread = {wrong.error.ref for wrong in broken if not wrong.kept} - objects.keys()
        lost = {ref.name for ref in unread if ref.kind == "Namespace"}
        for ref in [ref for ref in objects if ref.kind == "Pod" and ref.namespace in lost] if lost else ():
            del objects[ref]
        return Snapshot(objects, tuple(broken))

    def _parse(self, name: str, file: File) -> tuple[dict[Ref, Parsed], list[Broken]]:
        """What is in force of a file, the last good version where one is refused; and what is refused."""
        parsed: dict[Ref, Parsed] = {}
        refused: list[Broken] = []
        for ref, raw in file.documents.items():
            parsed[ref] = self._parsed_one(ref, raw, self._statuses.get(ref))
            error = parsed[ref].error
            if error is None:
                file.fallback[ref] = raw
                continue
            stand_in = next((found for found in self._stand_ins(ref, raw, file) if found.error is None), None)
            refused.append(Broken(name, error, kept=stand_in is not None))
            if stand_in is not None:
                parsed[ref] = stand_in
        return parsed, refused

    def _stand_ins(self, ref: Ref, raw: Mapping[str, Any], file: File) -> Iterator[Parsed]:
        """What may be in force instead: the object without the status that lies over it, or its last good version."""
        yield self._parsed_one(ref, raw, None)
        if ref in file.fallback:
            yield self._parsed_one(ref, file.fallback[ref], self._statuses.get(ref))
            yield self._parsed_one(ref, file.fallback[ref], None)

    def _parsed_one(self, ref: Ref, raw: Mapping[str, Any], status: Any) -> Parsed:
        """With `status` over its own. What was parsed before is not parsed again."""
        before = self._parsed.get(ref)
        if before is not None and before.raw is raw and before.status is status:
            return before
        document = raw
        if isinstance(status, Mapping):
            own = raw.get("status")
            document = {**raw, "status": {**(own if isinstance(own, Mapping) else {}), **status}}
        if before is not None and same_text(before.document, document):
            return replace(before, raw=raw, status=status)
        try:
            return Parsed(raw, status, document, parse(document))
        except BadObject as error:
            return Parsed(raw, status, document, None, error.with_traceback(None))  # kept without its frames


def _defined_twice(files: Iterable[tuple[str, File]], owners: Mapping[Ref, str]) -> Iterator[Broken]:
    for name, file in files:
        for ref in file.documents:
            if owners[ref] != name:
                error = BadObject(ref, "metadata.name", f"is defined in {owners[ref]} already")
                yield Broken(name, error, kept=True)


def _scan(root: Path, files: dict[str, File], keep: Path | None, named: Collection[str] | None) -> set[str]:
    """Bring `files` up to what is on disk; the names of those that are new, changed or gone. OSError: no change.

    `named`: paths to look at, and no others. If one is not there any more, only the whole folder can tell why.
    """
    seen = _walk(root) if named is None else _stamps(root, named)
    if None in seen.values():
        named, seen = None, _walk(root)
    changed = files.keys() - seen.keys() if named is None else set()
    for name in changed:
        del files[name]
    for name, stamp in seen.items():
        old = files.get(name)
        if stamp is not None and (old is None or old.stamp != stamp):
            files[name] = _read(root, name, stamp, old or File(stamp, fallback=_last_good(name, keep)))
            changed.add(name)
    return changed


def _walk(root: Path) -> dict[str, Stamp | None]:
    def refuse(error: OSError) -> None:
        if not (isinstance(error, FileNotFoundError) and error.filename != str(root)):  # removed since it was listed
            raise error

    found: dict[str, Stamp | None] = {}
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.update(_stamps(root, (f"{folder}/{name}" for name in names)))
    return {name: stamp for name, stamp in found.items() if stamp}  # the others were removed since they were listed


def _stamps(root: Path, paths: Iterable[str]) -> dict[str, Stamp | None]:
    """Of those that are manifest files below the folder, by their names in it; None: not there."""
    start = f"{root}/"
    found: dict[str, Stamp | None] = {}
    for path in paths:
        name = path.removeprefix(start)
        if name == path or not name.endswith(SUFFIXES) or name.startswith(".") or "/." in name:
            continue
        found[name] = None
        try:
            seen = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nowhere is there, unreadable
        except FileNotFoundError:
            continue
        if stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode):  # who opens a pipe waits for its writer
            found[name] = (seen.st_mtime_ns, seen.st_size, seen.st_ino)
    return found


def _kept(keep: Path, name: str) -> Path:
    return keep / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.yaml"


def _read(root: Path, name: str, stamp: Stamp, old: File) -> File:
    """One file. What cannot be read leaves the objects in force that were good before, here or in `keep`."""
    try:
        documents, errors = _documents(name, (root / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        bad = BadObject(Ref("file", "", name), "(text)", " ".join(str(error).split()))
        return File(stamp, dict(old.fallback), old.fallback, [Broken(name, bad, kept=bool(old.fallback))])
    # a document without a readable name may be any of the file's old ones: keep them all then
    if all(wrong.error.ref in documents for wrong in errors):
        return File(stamp, documents, {ref: old.fallback[ref] for ref in documents if ref in old.fallback}, errors)
    return File(stamp, {**old.fallback, **documents}, old.fallback, errors)


def _all_kept(keep: Path) -> dict[str, File]:
    """Everything that an earlier process knew, by the names of its files, so that the first of two goes on to win."""
    files = {}
    for path in sorted(keep.glob("*.yaml")):
        name, documents = _of_copy(path)
        files[name] = File((0, 0, 0), documents, dict(documents))
    return files


def _last_good(name: str, keep: Path | None) -> Documents:
    if keep is None or not _kept(keep, name).exists():
        return {}
    return _of_copy(_kept(keep, name))[1]


def _of_copy(path: Path) -> tuple[str, Documents]:
    """The name of a file and its objects, as `_remember` kept them; none, and said, of a copy that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        (kept,) = load_all(text)
        return str(kept["metadata"]["name"]), _documents(path.name, text)[0]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        log.warning("%s: no copy of a file: %s", path, " ".join(str(error).split()))
        return str(path), {}


def _documents(name: str, text: str) -> tuple[Documents, list[Broken]]:
    """The objects of a file by name, and those whose head cannot be read. YAMLError if the text is not YAML."""
    documents: Documents = {}
    errors: list[Broken] = []
    pending = load_all(text)
    while pending:
        document = pending.pop(0)
        if isinstance(document, Mapping) and document.get("kind") == "List":
            items = document.get("items") or []
            if isinstance(items, list):
                pending = [*items, *pending]
                continue
            document = items  # so that it is refused
        try:
            ref = reference(document)
            if group := vendor(document):  # a NetworkPolicy of Calico takes the place of none of Kubernetes
                ref = ref._replace(kind=f"{ref.kind}.{group}")
            if ref in documents:
                raise BadObject(ref, "metadata.name", "is defined twice in this file")
            documents[ref] = document
        except BadObject as error:
            errors.append(Broken(name, error, kept=False))
    return documents, errors
