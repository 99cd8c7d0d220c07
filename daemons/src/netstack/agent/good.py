"""The last good version of each policy, on disk: what stays in force when a policy breaks and the agent restarts.

A file a policy, so that an edit among hundreds writes one. An edit does not wait for the disk: that takes longer than
all else, and what a power cut leaves unreadable is no last good version (law 4 has what holds then).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from netstack.agent.policy.accept import RawSpecs
from netstack.core.files import settle, write_atomic
from netstack.core.ref import Ref

log = logging.getLogger("agent")


class GoodPolicies:
    """`folder` is made when there is something to keep."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[Ref, RawSpecs] = {}
        self._unsettled: set[Path] = set()
        for path in sorted(folder.glob("*.json")):
            try:
                item = json.loads(path.read_text(encoding="utf-8"))
                self._kept[Ref(*item["ref"])] = tuple(item["specs"])
            except (OSError, ValueError, TypeError, LookupError) as error:
                log.warning("%s: not a policy that was kept: %s", path, error)

    def read(self) -> dict[Ref, RawSpecs]:
        return dict(self._kept)

    def write(self, good: Mapping[Ref, RawSpecs]) -> None:
        """Keep exactly these, for the next process at least. OSError if the disk refuses; what was kept before is kept
        then, or is the new version."""
        for ref in self._kept.keys() - good.keys():
            self._path(ref).unlink(missing_ok=True)
        for ref in sorted(ref for ref, specs in good.items() if self._kept.get(ref) != specs):
            item = {"ref": [ref.kind, ref.namespace, ref.name], "specs": [dict(spec) for spec in good[ref]]}
            text = json.dumps(item, indent=1, default=str) + "\n"
            write_atomic(self._path(ref), text, mode=0o600, durable=False)
            self._unsettled.add(self._path(ref))
        self._kept = dict(good)

    def settle(self) -> None:
        """Keep them over a power cut too. OSError if the disk refuses."""
        for path in sorted(self._unsettled):
            settle(path)
            self._unsettled.remove(path)

    def _path(self, ref: Ref) -> Path:
        return self._folder / f"{hashlib.sha256(str(ref).encode()).hexdigest()[:24]}.json"
