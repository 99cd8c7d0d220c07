"""The last good version of each policy, on disk: what stays in force when a policy breaks and the agent restarts.

A file a policy, so that an edit among hundreds writes one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from netstack.agent.policy.accept import RawSpecs
from netstack.core.files import write_atomic
from netstack.core.ref import Ref


class GoodPolicies:
    """`folder` is made when there is something to keep."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[Ref, RawSpecs] = {}
        for path in sorted(folder.glob("*.json")):
            item = json.loads(path.read_text(encoding="utf-8"))
            self._kept[Ref(*item["ref"])] = tuple(item["specs"])

    def read(self) -> dict[Ref, RawSpecs]:
        return dict(self._kept)

    def write(self, good: Mapping[Ref, RawSpecs]) -> None:
        """Keep exactly these. OSError if the disk refuses; what was kept before is kept then, or is the new version."""
        for ref in self._kept.keys() - good.keys():
            self._path(ref).unlink(missing_ok=True)
        for ref, specs in sorted(good.items()):
            if self._kept.get(ref) != specs:
                item = {"ref": [ref.kind, ref.namespace, ref.name], "specs": [dict(spec) for spec in specs]}
                write_atomic(self._path(ref), json.dumps(item, indent=1, default=str) + "\n", mode=0o600)
        self._kept = dict(good)

    def _path(self, ref: Ref) -> Path:
        return self._folder / f"{hashlib.sha256(str(ref).encode()).hexdigest()[:24]}.json"
