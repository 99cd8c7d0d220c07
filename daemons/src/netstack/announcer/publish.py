"""What the announcer tells the world: status of Services and pools, ServiceL2Status, and the answer to `status`.

Pure: objects and views in, plain mappings out. Conditions carry the time of their last change, which the caller keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from netstack.announcer import pools as pool_rules
from netstack.announcer.advertise import Announcements
from netstack.announcer.allocate import Allocation
from netstack.announcer.apply import Event, Segment
from netstack.announcer.beat import Stage
from netstack.announcer.conflict import Conflict
from netstack.announcer.events import Owned
from netstack.core.address import unpack
from netstack.core.ref import Ref

Statuses = dict[Ref, dict[str, Any]]
"""By object."""
Changed = Callable[[Ref, str, str], str]
"""(object, condition type, what it says) -> RFC 3339 time since when it says so."""


COUNT_MAX = 2**63 - 1
"""Counts are int64 in the IPAddressPool's schema; a /64 of IPv6 has more, and the API server would take no status."""


def statuses(allocation: Allocation, announcements: Announcements, changed: Changed) -> Statuses:
    """Status of every Service and IPAddressPool that this daemon has an opinion on."""
    result: Statuses = {}
    for ref in sorted({*allocation.assigned, *allocation.refused}):
        assigned = allocation.assigned.get(ref)
        ingress = [{"ip": unpack(address), "ipMode": "VIP"} for address in assigned.addresses] if assigned else []
        refusal = allocation.refused.get(ref)
        words = (
            f"{refusal.field}: {refusal.reason}"
            if refusal
            else f"from IPAddressPool {assigned.pool if assigned else ''}"
        )
        conditions = [_condition(ref, "Allocated", refusal is None, "Refused", words, changed)]
        if assigned:
            silent = announcements.silent.get(ref)
            conditions.append(_condition(ref, "Announced", silent is None, "NoNode", silent or "", changed))
        result[ref] = {"loadBalancer": {"ingress": ingress}, "conditions": conditions}
    for pool in allocation.pools:
        counts: dict[str, Any] = {}
        for v4, family in ((True, "IPv4"), (False, "IPv6")):
            used = allocation.used(pool, v4)
            free = max(0, pool_rules.size(pool, v4) - used)  # one that names a buggy address has one beyond the size
            counts |= {f"assigned{family}": used, f"available{family}": min(free, COUNT_MAX)}
        result[pool.meta.ref] = counts
    for error in allocation.refused_pools:
        condition = _condition(error.ref, "Valid", False, "Refused", f"{error.field}: {error.reason}", changed)
        result[error.ref] = {"conditions": [condition]}
    return result


def _condition(ref: Ref, kind: str, good: bool, reason: str, message: str, changed: Changed) -> dict[str, Any]:
    """A metav1.Condition."""
    return {
        "type": kind,
        "status": "True" if good else "False",
        "reason": kind if good else reason,
        "message": message,
        "lastTransitionTime": changed(ref, kind, f"{good} {message}"),
    }


def l2_statuses(node: str, owned: Mapping[str, set[bytes]], announcements: Announcements) -> Statuses:
    """A ServiceL2Status for each Service that this node announces. `owned`: interface -> addresses."""
    result: Statuses = {}
    for address, item in announcements.addresses.items():
        interfaces = sorted(name for name, addresses in owned.items() if address in addresses)
        for service in item.services if interfaces else ():
            ref = Ref("ServiceL2Status", service.namespace, f"l2-{node}-{service.name}")
            result[ref] = {
                "node": node,
                "serviceName": service.name,
                "serviceNamespace": service.namespace,
                "interfaces": [{"name": name} for name in interfaces],
            }
    return result


def segment_view(segment: Segment, now: float) -> dict[str, Any]:
    """One interface for `netstack status`. Ages and spans in seconds."""
    election = segment.election
    return {
        "interface": segment.wire.interface,
        "mac": segment.wire.mac.hex(":"),
        "carrier": segment.up,
        "gateway_seen": election.gateway_seen if segment.gateway and election.witness else None,
        "peers": {
            peer.name: {
                "mac": peer.mac.hex(":"),
                "heard_s": round(now - peer.heard_at, 3) if peer.beat else None,
                "hears": list(peer.beat.heard) if peer.beat else [],
                "flags": [flag.name for flag in peer.flags],
            }
            for peer in election.peers.values()
        },
        "addresses": {unpack(address): _address_view(segment, address, now) for address in sorted(segment.addresses)},
        "dropped": dict(election.dropped),
        "conflicts": {unpack(address): count for address, count in segment.conflicts.counts.items()},
        "dark_max_s": max((e.dark_s for _, e in segment.history if isinstance(e, Owned) and e.dark_s), default=None),
        "history": [{"age_s": round(now - at, 3)} | event_view(event) for at, event in segment.history],
    }


def summary(views: Sequence[Mapping[str, Any]], addresses: int) -> str:
    """One line of `netstack status`; `views`: of `segment_view`. Where the gateway is not heard no minority owns
    anything, as if there were no witness: most often it is a gateway of another interface."""
    own = {address for view in views for address, item in view["addresses"].items() if "stage" in item}
    unheard = [view["interface"] for view in views if view["gateway_seen"] is False]
    text = f"{addresses} addresses, {len(own)} answered for by this node"
    return f"{text}; the gateway does not answer at {' and '.join(unheard)}, so it is no witness" if unheard else text


def _address_view(segment: Segment, address: bytes, now: float) -> dict[str, Any]:
    own = segment.election.holdings.get(address)
    if own is None or own.stage is Stage.CANDIDATE:
        return {"owner": segment.election.holder(address, now) or None}
    return {
        "owner": segment.election.node,
        "stage": own.stage.name.lower(),
        "term": own.term,
        "since_s": round(now - own.since, 3),
        "why": own.reason,
        "answers_for_s": round(own.deadline - now, 3),
    }


def event_view(event: Event) -> dict[str, Any]:
    """A change of ownership or a conflict, for history and journal."""
    if isinstance(event, Conflict):
        return {"event": "conflict", "address": unpack(event.address), "mac": event.mac.hex(":")}
    view = {"event": type(event).__name__.lower(), "address": unpack(event.address), "term": event.term}
    view["why"] = event.reason
    if isinstance(event, Owned) and event.dark_s is not None:
        view["silent_s"] = round(event.dark_s, 3)
    return view
