"""Where Kubernetes objects come from: one interface, two implementations (a folder of manifests, the API server)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from netstack.source.snapshot import Broken, Snapshot

__all__ = ["Broken", "Snapshot", "Source"]


class Source(Protocol):
    def snapshot(self) -> Snapshot:
        """What is known now, without waiting."""

    def watch(self) -> AsyncIterator[Snapshot]:
        """The present snapshot at once, then a new one after every change that was taken in. Never ends."""
