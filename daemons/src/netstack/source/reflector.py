"""Keeps one kind's replica up to date: list, then watch from there, for as long as it takes. A thread of its own.

* A list counts when its last page has come. Until then, and after any failure, the replica stays as it is.
* A watch resumes from the last version seen (bookmarks move it on where nothing else does). `410 Gone`, an event of
  type ERROR or an answer that is not the API's ends in a new list, which is compared: what did not change causes
  nothing.
* A version means something in one history only. Before a watch resumes, the server is asked for the uid of
  kube-system and its present version: another uid, or a version that has gone back, is another history (a wiped or
  restored etcd), in which a watch from our version would wait in silence. Then everything is listed again.
* Each thread finds out by itself that the server is away. The first that gets through to it again says so to those that
  are waiting (`hurry`): who was away for an hour is in step within seconds, not when its last thread has slept enough.
* A kind whose definition is missing (404) is empty; what is in force of it stays. So do objects that vanish because
  their definition is being deleted: an uninstalled CRD opens nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from netstack.source import depth
from netstack.source.backoff import Backoff, Draw
from netstack.source.client import ApiFailure, Client, Garbage, Refused, TooLarge, Unreachable
from netstack.source.credentials import Credentials
from netstack.source.replica import Listing, Replica

PAGE = 250
"""Objects in one answer: a page of large ones is parsed in about 10 ms, which no other thread of the process
notices."""
WATCH_S = (300.0, 600.0)
"""How long one watch lasts; drawn anew each time, as client-go does, so that nodes do not come back together."""
SILENCE_S = 180.0
"""A watch that is silent for longer is opened anew: the API server sends a bookmark every minute when anything
changes."""
LIVED_S = 5.0
"""A watch that lasted this long was a success; one that ends sooner is one more failure."""
GONE_S = (0.1, 2.0)
"""Pause before the list that a 410 asks for; who came back from an outage has been held apart before."""
HURRY_S = (0.0, 3.0)
"""Pause before the attempt of who was told that the server is back: nodes and kinds are held apart."""
MISSING_CAP_S = 60.0
"""Longest pause between two looks for a kind whose definition is missing."""
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
log = logging.getLogger("source")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a kind is not as the API server has it, and since when (RFC 3339)."""

    reason: str
    since: str


@dataclass(frozen=True, slots=True)
class History:
    """Which life of which cluster a version belongs to."""

    uid: str
    version: int

    def continues(self, other: History) -> bool:
        """Whether what was known in `other` is the past of this."""
        return self.uid == other.uid and self.version >= other.version


class Definition(ApiFailure):
    """The kind's definition is missing or being deleted."""


class Reflector:
    def __init__(
        self,
        replica: Replica,
        credentials: Credentials,
        lock: threading.Lock,
        changed: Callable[[], None],
        draw: Draw,
        back: Callable[[], None] = lambda: None,
    ) -> None:
        """`lock` guards the replica; `changed` is called after each change of it, of a status in it, or of
        `problem`; `back` when the server answers again."""
        self.replica = replica
        self.problem: Problem | None = None
        self.connected = False
        self.requests = 0
        self._resource = replica.want.resource
        self._path = self._resource.path(replica.want.namespace)
        self._credentials = credentials
        self._client = Client(credentials)
        self._lock = lock
        self._changed = changed
        self._draw = draw
        self._back = back
        self._away = False
        """The last attempt had no answer."""
        self._hurried = threading.Event()
        self._backoff = Backoff(draw)
        self._missing = Backoff(draw, base_s=2.0, cap_s=MISSING_CAP_S)
        self._stop = threading.Event()
        self._version = ""
        self._history: History | None = None
        self._gone = False
        """The last watch could not be resumed."""
        self._regular = False
        """The last watch ended when it should, so the server has been there throughout: its history is the same."""
        self._thread = threading.Thread(target=self._run, name=f"watch {replica.want}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; `join` waits for it."""
        self._stop.set()
        self._hurried.set()
        self._client.abort()

    def hurry(self) -> None:
        """From another thread: the server that has not answered is back."""
        if self._away:
            self._hurried.set()

    def join(self, timeout_s: float) -> None:
        while self._thread.is_alive() and timeout_s > 0:
            self._client.abort()  # a connection that was just being made
            self._thread.join(min(0.05, timeout_s))
            timeout_s -= 0.05

    def _run(self) -> None:
        while not self._stop.is_set():
            began = monotonic()
            try:
                if not self._version or self.replica.unkept:
                    self._list()
                elif not self._regular and not self._same_history():
                    self._version = ""
                    continue
                self._regular = False
                self._watch()
                failure: ApiFailure | None = None
            except ApiFailure as error:
                failure = error
            except Exception as error:  # an answer that nobody thought of must not end the thread unseen
                log.exception("%s: cannot be taken in", self.replica.want)
                failure = Garbage(f"cannot be taken in: {type(error).__name__}: {error}")
            if isinstance(failure, Garbage):
                self._client.close()
            self._rest(self._after(failure, monotonic() - began))
        self._client.close()

    def _rest(self, pause_s: float) -> None:
        """Until the next turn, or until somebody hurries us; who did so during the last turn was too early."""
        if not self._stop.is_set() and self._hurried.wait(pause_s):
            self._hurried.clear()
            self._stop.wait(self._draw(*HURRY_S))

    def _after(self, failure: ApiFailure | None, lived_s: float) -> float:
        """What the end of a turn means; the pause before the next."""
        self.connected, self._away = False, isinstance(failure, Unreachable)
        if isinstance(failure, Garbage) or (isinstance(failure, Refused) and failure.code in (404, 410)):
            self._version = ""  # not an answer to this kind and version: begin anew
        if failure is not None and not (isinstance(failure, Refused) and failure.code == 410):
            self._fail(failure)
        if isinstance(failure, Definition) or (isinstance(failure, Refused) and failure.code == 404):
            return self._missing.pause_s()
        self._missing.reset()
        if lived_s >= LIVED_S:
            self._backoff.reset()
            self._gone = False
        if isinstance(failure, Refused) and failure.code == 410 and not self._gone:
            self._gone = True  # a second one in a row is a server that only ever says so
            return self._draw(*GONE_S)
        return self._backoff.pause_s(failure.retry_after_s if failure else 0.0)

    def _fail(self, failure: ApiFailure) -> None:
        if self._stop.is_set():
            return
        missing = self._resource.crd and isinstance(failure, Refused) and failure.code == 404
        reason = "its definition is missing; what was known stays in force" if missing else str(failure)
        if self.problem is None or self.problem.reason != reason:
            since = self.problem.since if self.problem else now()
            self.problem = Problem(reason, since)
            log.warning("%s: %s", self.replica.want, reason)
        if missing:
            with self._lock:
                self.replica.none()
        self._changed()

    # the API -------------------------------------------------------------------------------------------------------

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        self.requests += 1
        return self._client.get(path, query)

    def _ask_history(self) -> History:
        try:
            answer = self._get("/api/v1/namespaces", {"fieldSelector": "metadata.name=kube-system", "limit": "1"})
        except Refused as error:
            if error.code != 403:
                raise
            return History("", 0)  # who may not ask lists anew each time: dear, but right
        items = answer.get("items") or []
        uid = items[0]["metadata"].get("uid", "") if items else ""
        return History(str(uid), int(_version(answer)))

    def _same_history(self) -> bool:
        now = self._ask_history()
        return self._history is not None and now.continues(History(self._history.uid, int(self._version)))

    def _list(self) -> None:
        history, limit = self._ask_history(), PAGE
        self._path = self._resource.path(self.replica.want.namespace)
        older = self._resource.older
        while True:
            try:
                listing, version = self._list_in_pages(limit)
                break
            except TooLarge:  # whoever may make objects makes them as large as the API server takes them
                if limit == 1:
                    raise
                limit //= 2
            except Refused as error:
                if error.code != 404 or not older:
                    raise
                self._path, older = self._resource.path(self.replica.want.namespace, version=older), ""
        self._confirm(self.replica.missing(listing))
        with self._lock:
            changed = self.replica.replace(listing)
        self._version, self._history = version, history
        if changed or self.replica.unsaved:
            self._changed()

    def _list_in_pages(self, limit: int) -> tuple[Listing, str]:
        """All objects and their version, so many at a time."""
        listing = Listing(everything=self.replica.unkept)
        query = {"limit": str(limit), **self.replica.want.selectors}
        while True:
            answer = self._get(self._path, query)
            items = answer.get("items", ())
            if not str(answer.get("kind", "")).endswith("List") or not isinstance(items, list | tuple | None):
                raise Garbage(f"no list of {self._resource.plural}, but kind {answer.get('kind')!r}")
            version = _version(answer)
            self.replica.page(items or (), listing)
            token = answer["metadata"].get("continue")
            if not token:
                return listing, version
            query["continue"] = token

    def _watch(self) -> None:
        timeout_s, began = int(self._draw(*WATCH_S)), monotonic()
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(timeout_s),
            **self.replica.want.selectors,
        }
        self.requests += 1
        for line in self._client.lines(self._path, query, SILENCE_S):
            if self._stop.is_set() or self.replica.unkept:
                return
            if line:
                self._event(line)
            else:
                self._well()
        self._regular = monotonic() - began >= timeout_s

    def _well(self) -> None:
        """The server serves this kind, from the version that we have."""
        self.connected = True
        self._hurried.clear()
        if self._away:
            self._away = False
            self._back()
        if self.problem is not None:
            log.info("%s: in step with the API server again", self.replica.want)
            self.problem = None
        self._changed()

    def _event(self, line: bytes) -> None:
        try:
            event = depth.load(line)
            kind, item = event["type"], event["object"]
            if kind == "ERROR":
                self._version = ""  # what cannot be told from here on may well be listed
                raise Refused(int(item.get("code", 500)), str(item.get("message", "")))
            version = item["metadata"]["resourceVersion"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Garbage(f"no watch event: {line[:60]!r}") from error
        if kind in ("ADDED", "MODIFIED"):
            with self._lock:
                changed = self.replica.put(item)
        elif kind == "DELETED":
            self._confirm(True)
            with self._lock:
                changed = self.replica.remove(item)
        elif kind == "BOOKMARK":
            changed = False
        else:
            raise Garbage(f"a watch event of type {kind!r}")
        self._version = str(version)
        if changed:
            self._changed()

    def _confirm(self, vanishing: bool) -> None:
        """Before objects of a kind with a definition of its own go: is it they that are deleted, or their kind?"""
        if not vanishing or not self._resource.crd:
            return
        self.requests += 1
        client = Client(self._credentials)  # the watch has the other connection
        try:
            definition = client.get(f"{DEFINITIONS}/{self._resource.definition}")
        except Refused as error:
            if error.code == 404:
                raise Definition("its definition is gone; what was known stays in force") from error
            raise
        finally:
            client.close()
        if (definition.get("metadata") or {}).get("deletionTimestamp"):
            raise Definition("its definition is being deleted; what was known stays in force")


def _version(answer: dict[str, Any]) -> str:
    """metadata.resourceVersion of a list: a number since etcd 3, and by promise comparable (KEP-5504)."""
    metadata = answer.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not version.isdigit():
        raise Garbage(f"a list without a version, of kind {answer.get('kind')!r}")
    return version
