"""Statuses in the API: merge patches to the status subresource, by one thread, and only where the watch shows
otherwise.

All nodes want the same text (netstack.source.ownership), so it is enough that one writes it. `patience_s` spreads
them: each waits its turn and looks again before it writes. What is written over by somebody who disagrees is written
again after pauses that double, so that two releases which judge a policy differently do not fight. What the server
does not keep (a field that a peer's definition lacks) is not said twice.

What is wrong is told in Events as well (netstack.source.events): conditions that are faults, and whatever the source
could not take. NetworkPolicy has no status, and who wrote an object looks at `kubectl describe` first.

Objects of our own are of two kinds: `place`d ones (the ingress's EndpointSlice), which are watched and mended, and
ServiceL2Status, one for each node and Service, which only its node writes and removes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from netstack.core.ref import Ref
from netstack.source import events
from netstack.source.backoff import Backoff, Draw
from netstack.source.client import MERGE_PATCH, ApiFailure, Client, Garbage, Refused
from netstack.source.kubernetes import KubernetesSource
from netstack.source.ownership import OWNED, essence, ours, patch
from netstack.source.parse import parse, reference
from netstack.source.reflector import Problem, now
from netstack.source.replica import Said
from netstack.source.resources import RESOURCES
from netstack.source.snapshot import Broken

MADE = ("ServiceL2Status",)
"""Kinds whose objects exist only as our status."""
EVENT = "Event"
"""Kind of what stands for the Events of an object: `kind/name` of that, and BROKEN if it cannot be taken."""
BROKEN = "/broken"
SETTLE_S = 3.0
"""A fault that has gone after this is not told."""
NODE_LABEL = "metallb.io/node"
LOOK_S = 60.0
"""Between two looks whether everything still says what is wanted."""
HOLD_S = (2.0, 600.0)
"""Shortest and longest pause before the same text is written to the same object again."""
ASK_S = 20.0
"""Of a kind that the server refuses, one object is tried again so often, for all of them."""
ENDING = "because it is being terminated"
"""In the API server's words for a namespace that takes nothing new (403), maybe for long."""
BEHIND_S = 10.0
"""A watch shows what was written within this time."""
log = logging.getLogger("status")


class StatusApi:
    """`node` names this node's ServiceL2Status, and who reports an Event; `patience_s()` is how long a change waits for
    another node to say it."""

    def __init__(self, source: KubernetesSource, node: str, *, patience_s: Callable[[], float], draw: Draw) -> None:
        self._source = source
        self._node = node
        self._patience_s = patience_s
        self._client = Client(source.credentials)
        self._backoff = Backoff(draw)
        self._wake = threading.Condition()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._wanted: dict[Ref, Mapping[str, Any]] = {}
        """Status, or whole document of an object of our own."""
        self._due: dict[Ref, float] = {}
        self._held: dict[Ref, tuple[Mapping[str, Any], float, float]] = {}
        """Object -> (what was written last, not again before, pause after that)."""
        self._dropped: dict[Ref, tuple[Any, Any]] = {}
        """Object -> (what was wanted, what the server made of it), where they differ."""
        self._stored: dict[Ref, tuple[Said, float]] = {}
        """What the server answered to a patch, and until when that may be newer than what the watch shows."""
        self._made: dict[Ref, Mapping[str, Any]] = {}
        self._refused: dict[str, dict[Ref, None]] = {}
        """Of each kind that we may not write (403), or whose definition is missing (404): the one that is tried, and
        those that wait for it."""
        self._faults: dict[Ref, tuple[events.Fault, ...]] = {}
        """What is to be told in Events, by what stands for them."""
        self._budget = events.Budget()
        self._swept: set[str] = set()
        self._problems: dict[str, Problem] = {}
        self._looked = 0.0
        self._busy: Ref | None = None
        """What is on its way to the server."""
        source.listen(self._hear)

    # called by the daemon: never waits -------------------------------------------------------------------------------

    def put(self, ref: Ref, status: Mapping[str, Any]) -> bool:
        self._find(_events_of(ref), events.faults(ref, status))
        return self._want(ref, status) if ref.kind in OWNED else False

    def delete(self, ref: Ref) -> bool:
        self._find(_events_of(ref), ())
        with self._wake:
            known = bool(self._wanted.get(ref))
        if known and ref.kind in OWNED:
            self._want(ref, {})
        return known

    def keep(self, kind: str, refs: Collection[Ref]) -> None:
        with self._wake:
            for ref in {fault.ref for found in self._faults.values() for fault in found} - set(refs):
                if ref.kind == kind:
                    self._faults.pop(_events_of(ref), None)
        if kind not in OWNED:
            return
        said = {ref for ref, (_, status) in self._source.all_said(kind).items() if ours(kind, status)}
        with self._wake:
            said |= {ref for ref, status in self._wanted.items() if ref.kind == kind and status}
            if kind in MADE and kind not in self._swept:
                self._due.setdefault(Ref(kind, "", ""), 0.0)
        for ref in said - set(refs):
            self._want(ref, {})
        self._start()

    def place(self, document: Mapping[str, Any]) -> bool:
        return self._want(reference(document), document)

    def report(self) -> list[dict[str, Any]]:
        return [
            {"kind": kind if kind == EVENT else f"status of {kind}", "reason": problem.reason, "since": problem.since}
            for kind, problem in sorted(self._problems.copy().items())
        ]

    def close(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._client.abort()
        if self._thread is not None:
            self._thread.join(2.0)

    def _want(self, ref: Ref, wanted: Mapping[str, Any]) -> bool:
        with self._wake:
            news = self._wanted.get(ref) != wanted
            self._wanted[ref] = wanted
            if ref not in self._due and self._differs(ref):
                self._due[ref] = monotonic() + (0.0 if _own(ref, wanted) else self._patience_s())
                self._wake.notify()
        self._start()
        return news

    def _hear(self, broken: Sequence[Broken]) -> None:
        """What the source cannot take. Every daemon that reads the kind finds the same, and gives it the same name."""
        found = {_events_of(item.error.ref, BROKEN): events.refusal(item.error) for item in broken}
        with self._wake:
            mended = [key for key in self._faults if key.name.endswith(BROKEN) and key not in found]
        for key in mended:
            self._find(key, ())
        for key, fault in found.items():
            self._find(key, (fault,))

    def _find(self, key: Ref, found: tuple[events.Fault, ...]) -> None:
        with self._wake:
            if not found:
                self._faults.pop(key, None)
                return
            if self._faults.get(key) == found:
                return
            self._faults[key] = found
            self._due[key] = monotonic() + SETTLE_S + self._patience_s()
            self._wake.notify()
        self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="status", daemon=True)
            self._thread.start()

    # what is to do: pure but for the replicas ------------------------------------------------------------------------

    def _differs(self, ref: Ref) -> bool:
        """Whether the API server shows something else than is wanted."""
        wanted = self._wanted.get(ref)
        if wanted is None or ref == self._busy:
            return False
        if ref.kind in MADE:
            return self._made.get(ref, {}) != wanted
        if "metadata" in wanted:
            return not _same(self._source.shown(ref), parse(wanted))
        said = self._said(ref)
        if said is None or not patch(ref.kind, said[1], wanted):
            if not wanted:
                self._wanted.pop(ref)
            return False
        return self._dropped.get(ref) != (essence(wanted), _part(ref.kind, said[1]))

    def _said(self, ref: Ref) -> Said | None:
        """Version and status on the server, as far as anybody here knows."""
        said = self._source.said(ref)
        stored, until = self._stored.get(ref, (said, 0.0))
        if said is not None and stored is not None and monotonic() < until and int(stored[0]) > int(said[0]):
            return stored
        self._stored.pop(ref, None)
        return said

    # the thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (ref := self._next()) is not None:
            try:
                self._settle(ref)
                self._backoff.reset()
                self._problems.pop(ref.kind, None)
                self._admitted(ref.kind)
            except ApiFailure as failure:
                self._failed(ref, failure)
            except Exception as error:  # nor may this thread end unseen
                log.exception("%s: its status cannot be written", ref)
                self._failed(ref, Garbage(f"{type(error).__name__}: {error}"))
            with self._wake:
                self._busy = None
                if ref not in self._due and self._differs(ref):  # wanted otherwise meanwhile
                    self._due[ref] = monotonic()
        self._client.close()

    def _next(self) -> Ref | None:
        """Waits for what is due next; None when there is no next."""
        with self._wake:
            while not self._stopped:
                moment = monotonic()
                if moment >= self._looked + LOOK_S:
                    self._looked = moment
                    for ref in [ref for ref in self._wanted if ref not in self._due and self._differs(ref)]:
                        self._due[ref] = moment + self._patience_s()
                until, first = self._looked + LOOK_S, min(self._due, key=self._due.__getitem__, default=None)
                if first is not None and self._due[first] <= moment:
                    del self._due[first]
                    return first
                self._wake.wait(min(until, self._due[first] if first is not None else until) - moment)
        return None

    def _settle(self, ref: Ref) -> None:
        if ref.kind == EVENT:
            self._tell(ref)
            return
        if not ref.name:
            self._sweep(ref.kind)
            return
        with self._wake:
            wanted = self._wanted.get(ref)
            if wanted is None or not self._differs(ref):
                return
            text, not_before, pause_s = self._held.get(ref, ({}, 0.0, HOLD_S[0]))
            if text == wanted and monotonic() < not_before:
                self._due[ref] = not_before
                return
            pause_s = min(2 * pause_s, HOLD_S[1]) if text == wanted else HOLD_S[0]
            self._held[ref] = (wanted, monotonic() + pause_s, pause_s)
            self._busy = ref
        if ref.kind in MADE:
            self._make(ref, wanted)
        elif "metadata" in wanted:
            self._put_document(ref, wanted)
        else:
            self._patch(ref, wanted)

    def _failed(self, ref: Ref, failure: ApiFailure) -> None:
        code = failure.code if isinstance(failure, Refused) else 0
        if code == 404 and ref.kind not in MADE:
            return  # the object has gone meanwhile
        if code == 403 and ENDING in str(failure):
            return  # it goes, and says nothing of other namespaces
        pause_s = self._backoff.pause_s(failure.retry_after_s)
        if code != 409:  # 409: somebody was faster; the watch is about to show what
            old = self._problems.get(ref.kind)
            if old is None or old.reason != str(failure):
                log.warning("%s: %s", ref, failure)
                self._problems[ref.kind] = Problem(str(failure), old.since if old else now())
        with self._wake:
            self._held.pop(ref, None)
            self._stored.pop(ref, None)
            if code in (403, 404):
                waiting = self._refused.setdefault(ref.kind, {})
                waiting[ref] = None
                pause_s = ASK_S if next(iter(waiting)) == ref else HOLD_S[1]
            elif code == 422:
                pause_s = HOLD_S[1]
            self._due[ref] = monotonic() + pause_s
            if not code and not self._stopped:  # the server is away: nothing else has to be tried meanwhile
                self._wake.wait(pause_s)

    def _admitted(self, kind: str) -> None:
        """One was taken: the others that wait for that are due."""
        with self._wake:
            for ref in self._refused.pop(kind, {}):
                if ref in self._due:
                    self._due[ref] = monotonic() + self._patience_s()

    def _patch(self, ref: Ref, wanted: Mapping[str, Any]) -> None:
        said = self._said(ref)
        if said is None:
            return
        version, current = said
        body = {"metadata": {"resourceVersion": version}, "status": patch(ref.kind, current, wanted)}
        answer = self._client.send("PATCH", _path(ref, "status"), body, MERGE_PATCH)
        stored = answer.get("status") or {}
        now_version = str((answer.get("metadata") or {}).get("resourceVersion", ""))
        if now_version.isdigit():
            self._stored[ref] = (now_version, stored), monotonic() + BEHIND_S
        if patch(ref.kind, stored, wanted):
            log.warning("%s: the API server does not keep all of its status", ref)
            self._dropped[ref] = essence(wanted), _part(ref.kind, stored)

    def _tell(self, key: Ref) -> None:
        """Write the Events of one object, unless another node has; again while the faults last."""
        with self._wake:
            found = self._faults.get(key)
            wait_s = self._budget.take(monotonic()) if found else 0.0
            if wait_s:
                self._due[key] = monotonic() + wait_s
        if not found or wait_s:
            return
        ref, moment = found[0].ref, datetime.now(UTC)
        query = {"fieldSelector": f"metadata.name={ref.name}"}
        items = self._client.get(RESOURCES[ref.kind].path(ref.namespace), query).get("items")
        if not items:
            return
        for fault in found:
            event = events.event(fault, items[0]["metadata"]["uid"], self._node, moment)
            path = events.PATH.format(event["metadata"]["namespace"])
            try:
                self._client.send("POST", path, event)
            except Refused as error:
                if error.code != 409:
                    raise
                self._tell_again(f"{path}/{event['metadata']['name']}", moment)
        with self._wake:  # unless there was news meanwhile
            self._due.setdefault(key, monotonic() + events.REPEAT_S + self._patience_s())

    def _tell_again(self, path: str, moment: datetime) -> None:
        series = events.again(self._client.get(path), moment)
        if series is not None:
            self._client.send("PATCH", path, series, MERGE_PATCH)

    def _put_document(self, ref: Ref, document: Mapping[str, Any]) -> None:
        try:
            self._client.send("PATCH", _path(ref), document, MERGE_PATCH)
        except Refused as error:
            if error.code != 404:
                raise
            self._client.send("POST", RESOURCES[ref.kind].path(ref.namespace), document)

    def _make(self, ref: Ref, status: Mapping[str, Any]) -> None:
        if not status:
            self._remove(ref)
            return
        try:
            self._client.send("PATCH", _path(ref, "status"), {"status": status}, MERGE_PATCH)
        except Refused as error:
            if error.code != 404:
                raise
            resource = RESOURCES[ref.kind]
            labels = {NODE_LABEL: self._node, "metallb.io/service-name": status["serviceName"]}
            metadata = {"name": ref.name, "namespace": ref.namespace, "labels": labels}
            head = {"apiVersion": resource.version, "kind": ref.kind, "metadata": metadata}
            self._client.send("POST", resource.path(ref.namespace), head)
            self._client.send("PATCH", _path(ref, "status"), {"status": status}, MERGE_PATCH)
        with self._wake:
            self._made[ref] = status

    def _remove(self, ref: Ref) -> None:
        try:
            self._client.send("DELETE", _path(ref))
        except Refused as error:
            if error.code != 404:
                raise
        with self._wake:
            self._made.pop(ref, None)
            if not self._wanted.get(ref):
                self._wanted.pop(ref, None)

    def _sweep(self, kind: str) -> None:
        """Once: remove this node's objects of an earlier process."""
        answer = self._client.get(RESOURCES[kind].path(), {"labelSelector": f"{NODE_LABEL}={self._node}"})
        self._swept.add(kind)
        for item in answer.get("items") or ():
            ref = reference({"kind": kind, "metadata": item["metadata"]})
            with self._wake:
                unwanted = not self._wanted.get(ref)
            if unwanted:
                self._remove(ref)


def _own(ref: Ref, wanted: Mapping[str, Any]) -> bool:
    """Whether no other node writes this."""
    return ref.kind in MADE or "metadata" in wanted


def _events_of(ref: Ref, part: str = "") -> Ref:
    return Ref(EVENT, ref.namespace, f"{ref.kind}/{ref.name}{part}")


def _path(ref: Ref, part: str = "") -> str:
    return RESOURCES[ref.kind].path(ref.namespace, ref.name, part)


def _part(kind: str, status: Mapping[str, Any]) -> Any:
    """What is ours of a status."""
    owned = OWNED[kind]
    mine = {name: status.get(name) for name in owned.fields}
    conditions = [item for item in status.get("conditions") or () if item.get("type") in owned.conditions]
    return essence({**mine, "conditions": conditions})


def _same(shown: Any, wanted: Any) -> bool:
    """Equal but for what the server adds to metadata."""
    return shown is not None and replace(shown, meta=wanted.meta) == wanted
