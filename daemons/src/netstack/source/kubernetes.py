"""The `kubernetes` source: the API server's objects, and the last known ones while it is away.

One thread per kind lists and watches (netstack.source.reflector) into that kind's replica; the event loop composes
snapshots from the replicas; one more thread keeps the last-known-good folder. No snapshot is given out before every
kind has been listed once or is in force from that folder: until then nothing is known, which is not the same as
nothing being there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.backoff import Draw
from netstack.source.credentials import Credentials
from netstack.source.lastgood import LastGood
from netstack.source.models import Object
from netstack.source.pace import Pace
from netstack.source.reflector import Problem, Reflector, now
from netstack.source.replica import Replica, Said
from netstack.source.resources import Want
from netstack.source.snapshot import Broken, Snapshot

SAVE_S = 5.0
"""Between two rounds of writing the last-known-good folder: bounds what churn costs the disk."""
RETRY_S = 30.0
"""Before what could not be written is tried again."""
STOP_S, SAVED_S = 2.0, 10.0
"""How long the end waits for a watch, and for the disk."""
Listener = Callable[[Sequence[Broken]], None]
log = logging.getLogger("source")


class KubernetesSource:
    """See the module. `keep`: the last-known-good folder."""

    def __init__(self, kubeconfig: str, wants: Sequence[Want], keep: Path, *, draw: Draw = random.uniform) -> None:
        self.credentials = Credentials(kubeconfig)
        self._lock = threading.Lock()
        self._lastgood = LastGood(keep)
        self._replicas = {want.key: Replica(want) for want in wants}
        self._reflectors = [
            Reflector(replica, self.credentials, self._lock, self._wake, draw, self._hurry)
            for replica in self._replicas.values()
        ]
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._dirty = threading.Event()
        self._saving = threading.Lock()
        """Held while the folder is written: by the keeper, or by who wants it now."""
        self._keeper = threading.Thread(target=self._keep, name="last good", daemon=True)
        self._unkept: Problem | None = None
        self._snapshot = Snapshot()
        self._listener: Listener = lambda broken: None
        with contextlib.suppress(OSError):
            self._lastgood.clear_others(self._replicas)
        for replica in self._replicas.values():
            self._load(replica)
        self._compose()

    @property
    def ready(self) -> bool:
        return all(replica.known for replica in self._replicas.values())

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def listen(self, listener: Listener) -> None:
        """Hear now, and whenever it changes, which objects cannot be taken. It must not wait."""
        self._listener = listener
        listener(self._snapshot.broken)

    def said(self, ref: Ref) -> Said | None:
        """An object's version and `status` as the API server has them; None if it has not shown it. Any thread."""
        with self._lock:
            return next((replica.statuses[ref] for replica in self._of(ref.kind) if ref in replica.statuses), None)

    def all_said(self, kind: str) -> dict[Ref, Said]:
        """The same for a whole kind."""
        with self._lock:
            return {ref: said for replica in self._of(kind) for ref, said in replica.statuses.items()}

    def shown(self, ref: Ref) -> Object | None:
        """The object as it is known. Any thread."""
        with self._lock:
            return next((replica.objects[ref] for replica in self._of(ref.kind) if ref in replica.objects), None)

    def _of(self, kind: str) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.want.kind == kind]

    async def watch(self) -> AsyncIterator[Snapshot]:
        self._loop = asyncio.get_running_loop()
        self._keeper.start()
        for reflector in self._reflectors:
            reflector.start()
        given, pace = None, Pace()
        try:
            while True:
                self._changed.clear()
                self._compose()
                if self.ready and self._snapshot is not given:
                    given = self._snapshot
                    yield given
                await self._changed.wait()
                await pace.turn()
        finally:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the threads; what is not saved yet is saved."""
        for reflector in self._reflectors:
            reflector.stop()
        for reflector in self._reflectors:
            reflector.join(STOP_S)
        self._stopping.set()
        self._dirty.set()
        self._keeper.join(SAVED_S)

    def report(self) -> dict[str, Any]:
        """For the daemons' `status`. `problems`: each kind that is not in step, why and since when."""
        problems = [
            {"kind": str(reflector.replica.want), "reason": problem.reason, "since": problem.since}
            for reflector in self._reflectors
            if (problem := reflector.problem) is not None
        ]
        if (unkept := self._unkept) is not None:
            problems.append({"kind": "last-known-good folder", "reason": unkept.reason, "since": unkept.since})
        return {
            "kind": "kubernetes",
            "ready": self.ready,
            "connected": all(reflector.connected for reflector in self._reflectors),
            "stale_since": min((problem["since"] for problem in problems), default=None),
            "problems": problems,
            "requests": sum(reflector.requests for reflector in self._reflectors),
        }

    # -----------------------------------------------------------------------------------------------------------------

    def _compose(self) -> None:
        """A new snapshot, if it says anything else than the present one."""
        with self._lock:
            objects: dict[Ref, Object] = {}
            broken: list[Broken] = []
            for replica in self._replicas.values():
                objects.update(replica.objects)
                broken += replica.broken.values()
            strangers = self._strangers()
        for ref in strangers:
            del objects[ref]
        new = Snapshot(objects, tuple(broken))
        if new == self._snapshot:
            return
        before, self._snapshot = self._snapshot, new
        for item in new.broken:
            if item not in before.broken:
                log.error("%s", item)
        if new.broken != before.broken:
            self._listener(new.broken)

    def _strangers(self) -> list[Ref]:
        """The pods whose Namespace is not known."""
        if "Namespace" not in {replica.want.kind for replica in self._replicas.values()}:
            return []
        known = {ref.name for replica in self._of("Namespace") for ref in replica.objects}
        return [ref for replica in self._of("Pod") for ref in replica.objects if ref.namespace not in known]

    def _wake(self) -> None:
        """From a reflector's thread."""
        self._dirty.set()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._changed.set)

    def _hurry(self) -> None:
        """From the reflector that is first to get through."""
        for reflector in self._reflectors:
            reflector.hurry()

    def _load(self, replica: Replica) -> None:
        key = replica.want.key
        try:
            documents = self._lastgood.load(key)
            if documents is not None:
                replica.load(documents)
        except (OSError, ValueError, BadObject) as error:
            log.error("the last-known-good folder of %s is not usable: %s", replica.want, error)
            replica.objects.clear()
            with contextlib.suppress(OSError):
                self._lastgood.clear(key)

    def _keep(self) -> None:
        """Thread: save what changed, at most every SAVE_S; what could not be saved is tried again."""
        while not self._stopping.is_set():
            self._dirty.wait()
            self._stopping.wait(SAVE_S)
            self._dirty.clear()
            failure = self._save()
            _give_back()
            if not failure:
                self._unkept = None
            elif self._unkept is None or self._unkept.reason != failure:
                self._unkept = Problem(failure, now())
                log.error("last-known-good folder: %s", failure)
            if failure and not self._stopping.wait(RETRY_S):
                self._dirty.set()
        self._save()  # what came while the last round was being written

    def save(self) -> None:
        """What the disk refuses, the keeper tries again."""
        if self._save():
            self._dirty.set()

    def _save(self) -> str:
        """What could not be saved, or ""."""
        with self._saving:
            return self._save_all()

    def _save_all(self) -> str:
        failure = ""
        for key, replica in self._replicas.items():
            with self._lock:
                if replica.unkept:
                    continue
                unsaved, replica.unsaved = replica.unsaved, {}
                anew, replica.anew = replica.anew, False
            try:
                if anew:
                    self._lastgood.clear(key)
                elif not self._lastgood.complete(key):
                    raise ValueError("it has vanished")
                if anew or unsaved:
                    self._lastgood.save(key, unsaved)
            except OSError as error:
                failure = f"{replica.want}: {error}"
                with self._lock:
                    replica.unsaved, replica.anew = {**unsaved, **replica.unsaved}, anew or replica.anew
            except ValueError as error:
                failure = f"{replica.want}: {error}, and is made anew"
                with self._lock:
                    replica.unkept = True
                with contextlib.suppress(OSError):
                    self._lastgood.clear(key)
        return failure


def _give_back() -> None:
    """Hand what a list took and needs no more back to the kernel (malloc_trim(3)): 11 MB after 20,000 objects."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
