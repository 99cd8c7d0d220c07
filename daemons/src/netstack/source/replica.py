"""One kind as it is known: the API server's list and events, taken in. No I/O.

What does not change a model changes nothing: `put`, `remove` and `replace` say whether a new snapshot is due. What did
change is remembered in `unsaved` until it has reached the last-known-good folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.client import Garbage
from netstack.source.depth import shallow
from netstack.source.models import Object
from netstack.source.parse import parse, reference
from netstack.source.resources import Want
from netstack.source.snapshot import Broken

ORIGIN = "API server"
"""What a broken object of this source names as its file."""
V = TypeVar("V")
EMPTY: tuple[Any, ...] = ({}, [], "", None)
Said = tuple[str, Mapping[str, Any]]
"""An object's resourceVersion and `status`."""
Unsaved = dict[Ref, bytes | None]
"""Object -> its manifest as JSON; None if it is gone."""


@dataclass(slots=True)
class Listing:
    """A whole list while its pages come in."""

    objects: dict[Ref, Object] = field(default_factory=dict)
    broken: dict[Ref, Broken] = field(default_factory=dict)
    statuses: dict[Ref, Said] = field(default_factory=dict)
    unsaved: Unsaved = field(default_factory=dict)
    everything: bool = False
    """`unsaved` has all objects, those too that say nothing new."""


@dataclass(slots=True)
class Replica:
    want: Want
    objects: dict[Ref, Object] = field(default_factory=dict)
    broken: dict[Ref, Broken] = field(default_factory=dict)
    statuses: dict[Ref, Said] = field(default_factory=dict)
    """As the API server has them, where the daemon writes them."""
    unsaved: Unsaved = field(default_factory=dict)
    known: bool = False
    """Listed, or in force from the last-known-good folder: an absent object is absent."""
    unkept: bool = True
    """There is no folder that `unsaved` follows on: the next whole list has to make one."""
    anew: bool = False
    """`unsaved` is everything that there is."""

    def load(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """What an earlier process knew. If it was of another release, an object may be wrong to this one."""
        for document in documents:
            ref = reference(document)
            try:
                model = parse(document)
            except BadObject as error:
                self.broken[ref] = Broken(ORIGIN, error, kept=False)
                continue
            if model is not None:
                self.objects[ref] = model
        self.known, self.unkept = True, False

    def put(self, raw: Any) -> bool:
        """An ADDED or MODIFIED object. True if a snapshot is due."""
        one = Listing()
        ref = self._read(raw, one)
        self.unsaved.update(one.unsaved)
        changed = one.objects.get(ref) is not self.objects.get(ref) or one.broken.get(ref) != self.broken.get(ref)
        if ref in one.objects:
            self.objects[ref] = one.objects[ref]
        _set(self.broken, ref, one.broken.get(ref))
        _set(self.statuses, ref, one.statuses.get(ref))
        return changed

    def remove(self, raw: Any) -> bool:
        """A DELETED object. True if a snapshot is due."""
        ref = self._reference(raw)
        self.statuses.pop(ref, None)
        broken = self.broken.pop(ref, None)
        if self.objects.pop(ref, None) is None:
            return broken is not None
        self.unsaved[ref] = None
        return True

    def page(self, items: Iterable[Any], listing: Listing) -> None:
        """Add one page to a listing. The replica stays as it is."""
        for raw in items:
            self._read(raw, listing)

    def missing(self, listing: Listing) -> bool:
        """Whether objects in force are not in a whole listing."""
        return any(ref not in listing.objects for ref in self.objects)

    def replace(self, listing: Listing) -> bool:
        """Be what a whole listing says. True if a snapshot is due."""
        changed = not self.known or listing.objects != self.objects or listing.broken != self.broken
        self.unsaved.update(listing.unsaved)
        self.unsaved.update(dict.fromkeys((self.objects.keys() | self.broken.keys()) - listing.objects.keys()))
        self.objects, self.broken, self.statuses = listing.objects, listing.broken, listing.statuses
        if listing.everything:
            self.unkept, self.anew = False, True
        self.known = True
        return changed

    def none(self) -> None:
        """The API server has no such kind, and nothing of it was ever known."""
        if not self.known:
            self.known, self.unkept, self.anew = True, False, True

    def _read(self, raw: Any, into: Listing) -> Ref:
        """Parse one object into a listing; the version in force where it is wrong or says nothing new."""
        ref = self._reference(raw)
        old = self.objects.get(ref)
        try:
            document = self._trim(ref, raw)
            model = parse(document)
        except BadObject as error:
            into.broken[ref] = Broken(ORIGIN, error, kept=old is not None)
            if old is not None:
                into.objects[ref] = old
            return ref
        if model is not None:
            into.objects[ref] = old if old is not None and model == old else model
            if into.objects[ref] is not old or into.everything:
                into.unsaved[ref] = json.dumps(document, separators=(",", ":")).encode()
        if self.want.status:
            status = {name: value for name, value in (raw.get("status") or {}).items() if value not in EMPTY}
            into.statuses[ref] = str(raw["metadata"].get("resourceVersion", "")), shallow(status)
        return ref

    def _trim(self, ref: Ref, raw: Any) -> dict[str, Any]:
        try:
            return self.want.resource.trim(raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadObject(ref, "(object)", f"is not what its API serves: {error}") from error

    def _reference(self, raw: Any) -> Ref:
        """Items of a list do not repeat their kind."""
        try:
            return reference({"kind": self.want.kind, "metadata": raw["metadata"]})
        except (BadObject, TypeError, KeyError) as error:
            raise Garbage(f"not a {self.want.kind}: {error}") from error


def _set(mapping: dict[Ref, V], ref: Ref, value: V | None) -> None:
    if value is None:
        mapping.pop(ref, None)
    else:
        mapping[ref] = value
