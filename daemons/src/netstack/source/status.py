"""The status folder: what would be written to an object's `status` in the API, as files of the same form.

One file an object, `<kind>.<namespace or _>.<name>.yaml`; each file has one writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from netstack.core.files import write_atomic
from netstack.core.ref import Ref


class StatusFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, ref: Ref) -> Path:
        return self.path / f"{ref.kind}.{ref.namespace or '_'}.{ref.name}.yaml".lower()

    def put(self, ref: Ref, api_version: str, status: Mapping[str, Any]) -> bool:
        """Make `status` the object's status; True if it was not already. OSError passes."""
        metadata = {"name": ref.name} | ({"namespace": ref.namespace} if ref.namespace else {})
        document = {"apiVersion": api_version, "kind": ref.kind, "metadata": metadata, "status": dict(status)}
        return write_atomic(self.file(ref), yaml.safe_dump(document, sort_keys=True))

    def delete(self, ref: Ref) -> bool:
        """Forget the object; True if it was there."""
        path = self.file(ref)
        existed = path.exists()
        path.unlink(missing_ok=True)
        return existed
