"""Events (events.k8s.io/v1) that say what `kubectl describe` should show of an object that is refused. Pure.

A condition that is False is a fault, and so is one whose reason is NotEnforced: who reads only the object would rely on
it, and NetworkPolicy has no status. All nodes find the same faults, and give the Event of one the same name, so the
API server lets in that of the first. It forgets Events after an hour (--event-ttl); a fault that lasts is told again
before that, as one more of a series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.resources import RESOURCES

PATH = "/apis/events.k8s.io/v1/namespaces/{}/events"
NOT_ENFORCED = "NotEnforced"
REPEAT_S = 1800.0
"""Between two of a series, as client-go."""
NAME_MAX, NOTE_MAX = 200, 1024
"""What is left of an object's name, characters; the API server's limit on a note, bytes."""


@dataclass(frozen=True, slots=True)
class Fault:
    ref: Ref
    condition: str
    """Its type, which becomes the Event's action."""
    reason: str
    message: str


def faults(ref: Ref, status: Mapping[str, Any]) -> tuple[Fault, ...]:
    """What a status says that is wrong."""
    return tuple(
        Fault(ref, item["type"], item.get("reason") or item["type"], item.get("message", ""))
        for item in status.get("conditions") or ()
        if item.get("status") == "False" or item.get("reason") == NOT_ENFORCED
    )


def refusal(error: BadObject) -> Fault:
    """Of an object that cannot be taken, in the words of a condition that says so."""
    return Fault(error.ref, "Valid", "Refused", str(error))


def namespace(ref: Ref) -> str:
    """Where an object's Events are; those of cluster-scoped objects are in `default`."""
    return ref.namespace or "default"


def event(fault: Fault, uid: str, node: str, now: datetime) -> dict[str, Any]:
    """`uid`: the object's, by which `kubectl describe` finds it."""
    ref = fault.ref
    regarding = {"apiVersion": RESOURCES[ref.kind].version, "kind": ref.kind, "name": ref.name, "uid": uid}
    text = "\0".join((uid, ref.kind, fault.condition, fault.reason, fault.message))
    number = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{ref.name[:NAME_MAX].rstrip('.-')}.{number}", "namespace": namespace(ref)},
        "regarding": regarding | ({"namespace": ref.namespace} if ref.namespace else {}),
        "eventTime": stamp(now),
        "type": "Warning",
        "reason": fault.reason,
        "action": fault.condition,
        "note": fault.message.encode()[:NOTE_MAX].decode(errors="ignore"),
        "reportingController": "netstack",
        "reportingInstance": node,
    }


def again(held: Mapping[str, Any], now: datetime) -> dict[str, Any] | None:
    """The merge patch that makes an Event one more of a series; None if that was said not long ago."""
    series = held.get("series") or {}
    last = datetime.fromisoformat(str(series.get("lastObservedTime") or held["eventTime"]))
    if now - last < timedelta(seconds=REPEAT_S / 2):
        return None
    return {
        "metadata": {"resourceVersion": held["metadata"]["resourceVersion"]},
        "series": {"count": int(series.get("count", 1)) + 1, "lastObservedTime": stamp(now)},
    }


def stamp(now: datetime) -> str:
    """metav1.MicroTime."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(slots=True)
class Budget:
    """So many at once, then one in so many seconds, whatever goes on: as client-go, for all objects together."""

    burst: float = 25.0
    every_s: float = 10.0
    left: float = 25.0
    at: float = 0.0
    """When `left` was right, seconds (time.monotonic())."""

    def take(self, now: float) -> float:
        """0.0: one was taken. Else the seconds to wait."""
        self.left, self.at = min(self.burst, self.left + (now - self.at) / self.every_s), now
        if self.left < 1:
            return (1 - self.left) * self.every_s
        self.left -= 1
        return 0.0
