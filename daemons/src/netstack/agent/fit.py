"""Whether tables fit into the kernel's maps, and what shall be in force if they do not. Pure.

Tables that depend on one another change together or not at all: a group of which one does not fit stays as it is,
whole, until there is room. What goes and what comes is there at once while a change is written (order.py), so that is
what has to fit.

A change that fits by itself, but not beside what it replaces, would wait for ever. It goes by a state in between. Of
services: those that go have gone, those that change are as they were. Of policy: the endpoints that stay have no rule
and enforce both directions, so nothing new begins; known flows go on, for the generation is the old one. The node
itself keeps its rules there, or its SSH would be cut.

Rules stay as they are, but not who is who among pods: an address that another pod has meanwhile, or a pod with other
labels, is CHANGING (order.py) until there is room, lest it has what rules give to who was there before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from netstack.agent.identities import CHANGING
from netstack.agent.order import ENDPOINT_ID, Tables, changing, guards, identity, is_guard
from netstack.core.table import Table
from netstack.kernel import layout

SERVICES, POLICY = ("services", "slots", "backends"), ("policy", "identities", "endpoints")
WHO_MAY = frozenset({*POLICY, "conntrack"})
"""The maps of which one that is too small leaves endpoints and policy as they are."""
GUARDS = 2
"""Entries of each endpoint in `policy` that are there only while a change is written (order.py)."""
SHUT = layout.ENFORCE_INGRESS | layout.ENFORCE_EGRESS

Holders = Mapping[str, Callable[[], Counter[str]]]
"""Map -> what its entries are for, and how many of them. Asked only of one that is too small."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """`tables`: what shall be in force, without `config`."""

    tables: Mapping[str, Table]
    overflows: Mapping[str, str] = field(default_factory=dict)
    """Map that is too small -> what to say; what depends on it was left as it is."""
    between: bool = False
    """`tables` are the state in between: what is wanted fits as soon as they are in force."""


def fitting(wanted: Tables, old: Tables, sizes: Mapping[str, int], holders: Holders) -> Fitted:
    """`wanted`, or what is possible of it. `sizes`: entries of each map, conntrack's too."""
    tables, overflows, between = dict(wanted), dict[str, str](), False
    for group in (SERVICES, POLICY):
        needed = _needed(group, wanted, old)
        small = [name for name, count in needed.items() if count > sizes[name]]
        if not small:
            continue
        step = STEPS[group](wanted, old)
        if _has_room(_needed(group, wanted, step), sizes):
            tables.update({name: step[name] for name in group})
            between = True
            continue
        tables.update(_rules_stay(wanted, old, sizes) if group == POLICY else {name: old[name] for name in group})
        overflows |= {name: _too_small(name, needed[name], sizes[name], holders[name]()) for name in small}
    return Fitted(tables, overflows, between)


def _has_room(needed: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
    return all(count <= sizes[name] for name, count in needed.items())


def _needed(group: Iterable[str], wanted: Tables, old: Tables) -> dict[str, int]:
    """Entries of each map while the change is written; of slots, services.py knows."""
    needed = {name: len(wanted[name].entries.keys() | old[name].entries.keys()) for name in group if name != "slots"}
    if "policy" in needed:
        needed["policy"] -= sum(map(is_guard, old["policy"].entries))
        ids = _ids(wanted["endpoints"]) | _ids(old["endpoints"])
        needed["conntrack"] = len(ids)
        needed["policy"] += GUARDS * len(ids)
        for trie in ("policy", "identities"):
            needed[trie] += 1  # before Linux 6.13, one that is full does not even let a value be replaced
    return needed


def _ids(endpoints: Table) -> set[bytes]:
    return {value[:ENDPOINT_ID] for value in endpoints.entries.values()}


def _services_go(wanted: Tables, old: Tables) -> Tables:
    services = {key: value for key, value in old["services"].entries.items() if key in wanted["services"].entries}
    regions = {layout.Number(layout.Service.unpack(value).first).pack() for value in services.values()}
    slots = {key: ids for key, ids in old["slots"].entries.items() if key in regions}
    used = {ids[at : at + 4] for ids in slots.values() for at in range(0, len(ids), 4)}
    backends = {key: value for key, value in old["backends"].entries.items() if key in used}
    return {
        "services": Table("services", services),
        "slots": Table("slots", slots),
        "backends": Table("backends", backends),
    }


def _rules_go(wanted: Tables, old: Tables) -> Tables:
    rules = {
        key: value
        for key, value in old["policy"].entries.items()
        if layout.PolicyKey.unpack(key).endpoint == layout.HOST_ENDPOINT
    }
    endpoints = {}
    for key, value in old["endpoints"].entries.items():
        endpoint = layout.Endpoint.unpack(value)
        if endpoint.id == layout.HOST_ENDPOINT:
            endpoints[key] = value
        elif wanted["endpoints"].entries.get(key, b"")[:ENDPOINT_ID] == value[:ENDPOINT_ID]:
            endpoints[key] = replace(endpoint, enforce=SHUT).pack()
    stay = wanted["identities"].entries.keys() if not rules else old["identities"].entries.keys()  # rules judge by them
    identities = {key: value for key, value in old["identities"].entries.items() if key in stay}
    return {
        "policy": Table("policy", rules),
        "identities": Table("identities", identities),
        "endpoints": Table("endpoints", endpoints),
    }


def _rules_stay(wanted: Tables, old: Tables, sizes: Mapping[str, int]) -> Tables:
    """`old`, but for pods that have become others. If there is no room for an address, whoever in the ranges of pods is
    not known is CHANGING."""
    before, now = old["identities"].entries, wanted["identities"].entries
    identities = {key: _as_known(value, now.get(key)) for key, value in before.items()}
    new = sorted(key for key, value in now.items() if key not in before and _is_pod(value))
    room = max(0, sizes["identities"] - 1 - len(before))
    identities |= {key: changing(now[key]) for key in new[:room]}
    if new[room:]:
        unknown = [key for key, value in before.items() if identity(value) == layout.IDENTITY_UNMANAGED]
        identities |= {key: changing(before[key]) for key in unknown}
    endpoints = {}
    for key, value in old["endpoints"].entries.items():
        endpoint, then = layout.Endpoint.unpack(value), wanted["endpoints"].entries.get(key)
        same = then is None or layout.Endpoint.unpack(then).identity == endpoint.identity
        endpoints[key] = value if same else replace(endpoint, identity=CHANGING).pack()
    policy = old["policy"].entries
    if identities != before:
        policy = {**policy, **guards(old)}
    return {
        "policy": Table("policy", policy),
        "identities": Table("identities", identities),
        "endpoints": Table("endpoints", endpoints),
    }


def _as_known(before: bytes, now: bytes | None) -> bytes:
    """What a range or an address is to rules of before."""
    if now is None:
        return changing(before) if _is_pod(before) else before
    if identity(before) == identity(now):
        return now
    return changing(now) if _is_pod(before) or _is_pod(now) else before


def _is_pod(value: bytes) -> bool:
    return layout.IDENTITY_PODS <= identity(value) < layout.IDENTITY_PODS_END


STEPS: Mapping[tuple[str, ...], Callable[[Tables, Tables], Tables]] = {SERVICES: _services_go, POLICY: _rules_go}
"""Group -> the state in between, from what is wanted and what is in force."""


def _too_small(name: str, count: int, size: int, holders: Counter[str]) -> str:
    most = "".join(f", {number} of them for {holder}" for holder, number in holders.most_common(1))
    return (
        f"map {name} is too small: {count} entries of {size}{most}; nothing of it was changed. "
        f"More: datapath.sizes.{name} in agent.yaml (the role's agent_settings), and a restart of the node"
    )
