"""Where daemons say what became of objects: one interface for the status folder and the API server.

The folder holds what would be written to an object's `status` in the API, as files of the same form. One file an
object, `<kind>.<namespace or _>.<name>.yaml`; each file has one writer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from netstack.core.files import stem, write_atomic
from netstack.core.ref import Ref
from netstack.source.resources import RESOURCES


class Statuses(Protocol):
    """None of the calls waits for a network. OSError from any: the folder cannot be written; call again."""

    def put(self, ref: Ref, status: Mapping[str, Any]) -> bool:
        """Make `status` the object's status; True if that is news."""

    def delete(self, ref: Ref) -> bool:
        """Have no opinion on the object any more; True if there was one."""

    def keep(self, kind: str, refs: Collection[Ref]) -> None:
        """Of this kind, have an opinion on these objects alone, whatever an earlier process said."""

    def place(self, document: Mapping[str, Any]) -> bool:
        """Make an object that is wholly ours what the document says; True if that is news."""

    def report(self) -> list[dict[str, Any]]:
        """What could not be said, why and since when: {kind, reason, since}."""


class StatusFolder:
    """`manifests`: the folder of the directory source, where objects of our own go."""

    def __init__(self, path: Path, manifests: Path | None = None) -> None:
        self.path = path
        self._manifests = manifests or path

    def file(self, ref: Ref) -> Path:
        return self.path / file_name(ref)

    def put(self, ref: Ref, status: Mapping[str, Any]) -> bool:
        metadata = {"name": ref.name} | ({"namespace": ref.namespace} if ref.namespace else {})
        version = RESOURCES[ref.kind].version
        document = {"apiVersion": version, "kind": ref.kind, "metadata": metadata, "status": dict(status)}
        return write_atomic(self.file(ref), yaml.safe_dump(document, sort_keys=True))

    def delete(self, ref: Ref) -> bool:
        path = self.file(ref)
        existed = path.exists()
        path.unlink(missing_ok=True)
        return existed

    def keep(self, kind: str, refs: Collection[Ref]) -> None:
        names = {file_name(ref) for ref in refs if ref.kind == kind}
        for path in self.path.glob(f"{kind.lower()}.*.yaml"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def place(self, document: Mapping[str, Any]) -> bool:
        metadata = document["metadata"]
        ref = Ref(document["kind"], metadata.get("namespace", ""), metadata["name"])
        return write_atomic(self._manifests / file_name(ref), yaml.safe_dump(dict(document), sort_keys=False))

    def report(self) -> list[dict[str, Any]]:
        return []


def file_name(ref: Ref) -> str:
    return stem(f"{ref.kind}.{ref.namespace or '_'}.{ref.name}".lower()) + ".yaml"
