"""Services, EndpointSlices -> the `services`, `slots` and `backends` tables (kernel/layout.py).

A service port has up to five kinds of frontend (ClusterIP, external, LoadBalancer address, node port, and for each
address a stub that refuses all other ports) in two scopes: CLUSTER for what starts on this node, WORLD for what comes
in by the uplink. All frontends of one port and scope share one region of `slots`, in Maglev's order.

Ids are hashes of names (numbers.py). Where a region lies is a choice that must not change without need, and a region
in use must never be overwritten: so the tables that are in force go in, and what they hold stays where it is. The
`slots` table has a region a key: its first index -> its backend ids, 4 bytes each.

Rules: Kubernetes API of Service and EndpointSlice; KEP-1669 for terminating endpoints; scopes as Cilium's.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from netstack.agent import maglev
from netstack.agent.numbers import numbers
from netstack.core.address import ANY, is_v4, unpack
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.core.table import Table
from netstack.kernel import layout
from netstack.source.models import Endpoint, EndpointSlice, Service, ServicePort

PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}
SCOPES = (layout.SCOPE_CLUSTER, layout.SCOPE_WORLD)
IGNORED_BY = ("service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")
"""Labels with which a Service says that another proxy serves it, or none."""


@dataclass(frozen=True, slots=True)
class ServiceTables:
    """What the three maps should hold; `problems` names the services, or parts of one, that are not served, and why."""

    services: Table = field(default_factory=lambda: Table("services"))
    slots: Table = field(default_factory=lambda: Table("slots"))
    backends: Table = field(default_factory=lambda: Table("backends"))
    owners: Mapping[int, Ref] = field(default_factory=dict)
    """Service id -> its object."""
    problems: tuple[BadObject, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One backend: address, port, and the node that hosts it (:: = none of the cluster's)."""

    address: bytes
    port: int
    node: bytes

    @property
    def name(self) -> str:
        return f"{unpack(self.address)} {self.port}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What one service port can use in one family: `live` take new connections, `known` may keep the ones they have."""

    live: tuple[Target, ...]
    local: tuple[Target, ...]
    known: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Frontend:
    """One entry to be: where it is reached, and the backends behind it."""

    key: layout.ServiceKey
    port_id: str
    affinity_s: int
    targets: tuple[Target, ...]


def compile_services(
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    nodes: Mapping[str, bytes],
    node: str,
    before: ServiceTables,
    capacity: int = layout.MAPS["slots"].entries,
) -> ServiceTables:
    """`nodes`: name -> address; `node`: this one's name; `before`: what the maps hold now; `capacity` of `slots`."""
    by_service: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    for item in slices:
        by_service[item.meta.namespace, item.service].append(item)
    frontends: dict[bytes, Frontend] = {}
    stubs: set[bytes] = set()
    known: set[Target] = set()
    owners: dict[str, Ref] = {}
    problems: list[BadObject] = []
    for service in sorted(services, key=lambda s: (s.meta.created, s.meta.ref)):  # the older one wins an address
        if any(label in service.meta.labels for label in IGNORED_BY):
            continue
        stubs.update(_stubs(service, frozenset(nodes.values())))
        for index, port in enumerate(service.ports):
            if port.protocol not in ("TCP", "UDP"):
                problems.append(_problem(service, index, f"protocol {port.protocol} is not balanced"))
                continue
            for frontend in _frontends(service, port, by_service, nodes, node, known):
                key = frontend.key.pack()
                if key in frontends:
                    holder = owners[frontends[key].port_id]
                    problems.append(_problem(service, index, f"{_show(frontend.key)} is taken by {holder}"))
                    continue
                frontends[key] = frontend
                owners[frontend.port_id] = service.meta.ref
        if service.source_ranges and service.load_balancer_ips:
            reason = "is not enforced yet, so the addresses are refused from outside the cluster"
            problems.append(BadObject(service.meta.ref, "spec.loadBalancerSourceRanges", reason))
    known.update(target for frontend in frontends.values() for target in frontend.targets)
    return _tables(frontends, stubs, known, owners, before, capacity, problems)


def _frontends(
    service: Service,
    port: ServicePort,
    by_service: Mapping[tuple[str, str], list[EndpointSlice]],
    nodes: Mapping[str, bytes],
    node: str,
    known: set[Target],
) -> Iterator[Frontend]:
    """Every entry of one service port. Adds to `known` the backends that may keep their connections."""
    slices = by_service.get((service.meta.namespace, service.meta.name), [])
    choices = {v4: _choose(slices, port, v4, nodes, node) for v4 in (True, False)}
    addresses = frozenset(nodes.values())
    protocol = PROTOCOL_NUMBERS[port.protocol]
    name = f"{service.meta.ref.key} {port.name} {port.port}/{port.protocol}"

    def entry(address: bytes, number: int, scope: int, local: bool, refused: bool = False) -> Frontend:
        v4 = is_v4(address) if address != ANY else True
        targets = () if refused else choices[v4].local if local else choices[v4].live
        return Frontend(layout.ServiceKey(address, number, protocol, scope), name, service.affinity_s, targets)

    refused = bool(service.source_ranges)
    for choice in choices.values():
        known.update(choice.known)
    for address in service.cluster_ips:
        yield entry(address, port.port, layout.SCOPE_CLUSTER, service.internal_local)
    for address in dict.fromkeys(service.load_balancer_ips):
        yield entry(address, port.port, layout.SCOPE_CLUSTER, False)
        yield entry(address, port.port, layout.SCOPE_WORLD, service.external_local, refused)
    for address in dict.fromkeys(service.external_ips):
        if address in service.load_balancer_ips:
            continue
        if address in addresses:  # from inside only a node's own: anything else could be hijacked (CVE-2020-8554)
            yield entry(address, port.port, layout.SCOPE_CLUSTER, False)
        yield entry(address, port.port, layout.SCOPE_WORLD, service.external_local)
    if port.node_port:
        yield entry(ANY, port.node_port, layout.SCOPE_CLUSTER, False)
        yield entry(ANY, port.node_port, layout.SCOPE_WORLD, service.external_local)


def _choose(
    slices: Iterable[EndpointSlice], port: ServicePort, v4: bool, nodes: Mapping[str, bytes], node: str
) -> Choice:
    """Ready endpoints; if there are none, those that terminate and still serve (KEP-1669)."""
    ready: set[Target] = set()
    serving: set[Target] = set()
    known: set[Target] = set()
    local: set[Target] = set()
    for item in slices:
        number = next((n for name, proto, n in item.ports if (name, proto) == (port.name, port.protocol)), 0)
        for endpoint in item.endpoints if number else ():
            for target in _targets(endpoint, number, v4, nodes):
                known.add(target)
                if endpoint.node == node:
                    local.add(target)
                if endpoint.ready:
                    ready.add(target)
                elif endpoint.serving and endpoint.terminating:
                    serving.add(target)
    live = ready or serving
    here = local & ready or local & serving
    return Choice(tuple(sorted(live)), tuple(sorted(here)), tuple(sorted(known)))


def _targets(endpoint: Endpoint, port: int, v4: bool, nodes: Mapping[str, bytes]) -> Iterator[Target]:
    for address in endpoint.addresses[:1]:  # EndpointSlice: several addresses of one endpoint are the same; use one
        if is_v4(address) == v4:
            yield Target(address, port, nodes.get(endpoint.node, ANY))


def _stubs(service: Service, nodes: frozenset[bytes]) -> Iterator[bytes]:
    """Entries for the addresses themselves. Never for a node's own address: its SSH would go with it."""
    inside = [*service.cluster_ips, *service.load_balancer_ips]
    outside = [*inside, *service.external_ips]
    for scope, addresses in ((layout.SCOPE_CLUSTER, inside), (layout.SCOPE_WORLD, outside)):
        for address in addresses:
            if address not in nodes:
                yield layout.ServiceKey(address, 0, 0, scope).pack()


def _tables(
    frontends: Mapping[bytes, Frontend],
    stubs: set[bytes],
    known: set[Target],
    owners: Mapping[str, Ref],
    before: ServiceTables,
    capacity: int,
    problems: list[BadObject],
) -> ServiceTables:
    ids, _ = numbers(owners)
    names = {f"{target.name} {unpack(target.node)}": target for target in known}
    backend_ids, _ = numbers(names)
    id_of = {names[name]: number for name, number in backend_ids.items()}
    regions = _Regions(before, capacity)
    entries = {key: layout.Service().pack() for key in stubs}
    for key, frontend in sorted(frontends.items()):
        number = ids[frontend.port_id]
        chosen = maglev.order(tuple(target.name for target in frontend.targets))
        content = struct.pack(f"={len(chosen)}I", *(id_of[frontend.targets[index]] for index in chosen))
        first = regions.place(number, content)
        if first is None:
            reason = f"the slots map is full ({capacity}): {_show(frontend.key)} keeps the backends that it had"
            problems.append(BadObject(owners[frontend.port_id], "spec.ports", reason))
            entries[key] = regions.keep(before.services.entries.get(key, layout.Service(number).pack()))
            continue
        count = len(frontend.targets)
        entries[key] = layout.Service(number, first, len(chosen), frontend.affinity_s, 0, count).pack()
    backends = {
        layout.Number(number).pack(): layout.Backend(target.address, target.node, target.port).pack()
        for target, number in sorted(id_of.items())
    }
    return ServiceTables(
        Table("services", entries),
        Table("slots", regions.used),
        Table("backends", backends),
        {ids[name]: ref for name, ref in owners.items()},
        tuple(problems),
    )


class _Regions:
    """Where in `slots` each list of backend ids lies. Space that is in use now is given to nothing else."""

    def __init__(self, before: ServiceTables, capacity: int) -> None:
        self.used: dict[bytes, bytes] = {}
        self._slots = before.slots.entries
        self._mine: dict[tuple[int, bytes], bytes] = {}
        busy = sorted((layout.Number.unpack(key).value, len(ids) // 4) for key, ids in before.slots.entries.items())
        self._free: list[tuple[int, int]] = []
        at = 0
        for first, length in [*busy, (capacity, 0)]:
            if first > at:
                self._free.append((at, first - at))
            at = max(at, first + length)
        self._before = {
            (service.id, before.slots.entries[place]): place
            for service in map(layout.Service.unpack, before.services.entries.values())
            if (place := layout.Number(service.first).pack()) in before.slots.entries and service.slots
        }

    def place(self, service: int, content: bytes) -> int | None:
        """The first index of a region of this service that holds `content`; None if there is no room."""
        if not content:
            return 0
        place = self._mine.get((service, content)) or self._before.get((service, content))
        if place is None or (place in self.used and self.used[place] != content):
            place = self._take(len(content) // 4)
        if place is None:
            return None
        self._mine[service, content] = place
        self.used[place] = content
        return layout.Number.unpack(place).value

    def keep(self, service: bytes) -> bytes:
        """A services value as it is in force, with its region."""
        place = layout.Number(layout.Service.unpack(service).first).pack()
        if place in self._slots:
            self.used[place] = self._slots[place]
        return service

    def _take(self, length: int) -> bytes | None:
        """First fit."""
        for index, (first, room) in enumerate(self._free):
            if room >= length:
                self._free[index] = (first + length, room - length)
                return layout.Number(first).pack()
        return None


def _problem(service: Service, index: int, reason: str) -> BadObject:
    return BadObject(service.meta.ref, f"spec.ports[{index}]", reason)


def _show(key: layout.ServiceKey) -> str:
    protocol = {number: name for name, number in PROTOCOL_NUMBERS.items()}[key.protocol]
    return f"{'node port' if key.address == ANY else unpack(key.address)} {key.port}/{protocol}"
