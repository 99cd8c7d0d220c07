"""Looks at a KubernetesSource from a test: runs its watch on a thread's loop and keeps every snapshot it gives."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from netstack.core.ref import Ref
from netstack.source.kubernetes import KubernetesSource
from netstack.source.resources import Want
from netstack.source.snapshot import Snapshot

WAIT_S = 60.0


def wait_for(holds: Callable[[], object], what: str = "it") -> None:
    """Bounded: until the condition holds."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, f"{what} did not happen in {WAIT_S} s"
        time.sleep(0.005)


class Watched:
    """A source that is being watched. Pauses between attempts are a tenth of the real ones."""

    def __init__(self, kubeconfig: Path, keep: Path, wants: Sequence[Want]) -> None:
        self.source = KubernetesSource(
            str(kubeconfig), wants, keep, draw=lambda low, high: low if low > 100 else high / 10
        )
        self.snapshots: list[Snapshot] = []
        self.times: list[float] = []
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        wait_for(lambda: self._task is not None)
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self._task = self._loop.create_task(self._follow())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            self._loop.close()

    async def _follow(self) -> None:
        async for snapshot in self.source.watch():
            self.snapshots.append(snapshot)
            self.times.append(time.monotonic())

    @property
    def names(self) -> list[str]:
        return sorted(ref.name for ref in self.source.snapshot().objects)

    def shows(self, *names: str) -> None:
        wait_for(lambda: bool(self.snapshots) and self.names == sorted(names), f"{names} (now {self.names})")

    def has(self, ref: Ref) -> bool:
        return ref in self.source.snapshot().objects

    def connected(self) -> None:
        wait_for(lambda: self.source.report()["connected"], f"connected ({self.source.report()})")

    def problem(self, kind: str) -> str:
        """Waits for a problem of this kind; its reason."""

        def found() -> list[str]:
            return [p["reason"] for p in self.source.report()["problems"] if p["kind"] == kind]

        wait_for(found, f"a problem of {kind}")
        return found()[0]
