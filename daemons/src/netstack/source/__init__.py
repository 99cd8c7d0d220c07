"""Where Kubernetes objects come from: one interface, two implementations (a folder of manifests, the API server)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from netstack.source.snapshot import Broken, Snapshot

__all__ = ["Broken", "Snapshot", "Source"]


class Source(Protocol):
    @property
    def ready(self) -> bool:
        """False while nothing is known: then an empty snapshot does not mean that nothing is there."""

    def snapshot(self) -> Snapshot:
        """What is known now, without waiting."""

    def watch(self) -> AsyncIterator[Snapshot]:
        """The present snapshot as soon as the source is ready, then a new one after every change that was taken in.
        Never ends; may be called once."""

    def save(self) -> None:
        """Have what is known now on disk, for another process to read. Blocks; from any thread."""

    def report(self) -> dict[str, Any]:
        """For the daemons' `status`: kind, ready, connected, stale_since (RFC 3339 or None), problems (kind, reason,
        since)."""
