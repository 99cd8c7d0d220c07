"""Services, EndpointSlices -> the `services`, `slots` and `backends` tables (kernel/layout.py).

A service port has up to five kinds of frontend (ClusterIP, external, LoadBalancer address, node port, and for each
address a stub that refuses all other ports) in two scopes: CLUSTER for what starts on this node, WORLD for what comes
in by the uplink. All frontends of one port and scope share one region of `slots`, in Maglev's order.

Ids are hashes of names (numbers.py). Where a region lies is a choice that must not change without need, and a region
in use must never be overwritten: so the tables that are in force go in, and what they hold stays where it is. The
`slots` table has a region a key: its first index -> its backend ids, 4 bytes each.

A pod's address is never a Service's, whoever writes so: whatever other nodes send to that pod would go elsewhere, past
the policies of who sends it. A node's may be, but for the ports by which a node is managed (CVE-2020-8554).

Rules: Kubernetes API of Service and EndpointSlice; KEP-1669 for terminating endpoints; scopes as Cilium's.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from netstack.agent import maglev
from netstack.agent.identities import is_ingress
from netstack.agent.numbers import numbers
from netstack.core.address import ANY, Prefix, is_v4, unpack
from netstack.core.errors import BadObject
from netstack.core.protocol import PROTOCOL_NAMES, PROTOCOLS
from netstack.core.ref import Ref
from netstack.core.table import Table
from netstack.kernel import layout
from netstack.source.models import Endpoint, EndpointSlice, Service, ServicePort

NOBODY = layout.Service().pack()
"""A service without backends."""
ID_BYTES = 4
NOT_ONE_HOSTS = tuple(
    map(
        Prefix.parse,
        ("0.0.0.0", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255", "::1", "fe80::/10", "ff00::/8"),
    )
)
"""What Kubernetes refuses as an external address (ValidateNonSpecialIP), all multicast, and the broadcast: DHCP
may answer by it."""
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

    def holds(self, other: ServiceTables) -> bool:
        """Whether these are the very tables of `other`."""
        return self.services is other.services and self.slots is other.slots and self.backends is other.backends


class Target(NamedTuple):
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
    known: Mapping[Target, bool]
    """... and whether they serve those."""


class Frontend(NamedTuple):
    """One entry to be: where it is reached (a packed ServiceKey), which of spec.ports it is, and the backends behind
    it."""

    key: bytes
    port_index: int
    port_id: str
    affinity_s: int
    targets: tuple[Target, ...]


class Backend(NamedTuple):
    """Of a target: the name that its id comes from, whether it serves anybody, and its entry."""

    name: str
    serves: bool
    packed: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """What one Service comes to, whatever the others are."""

    of: tuple[Service | EndpointSlice, ...]
    """What it was made of, the Service first."""
    frontends: tuple[Frontend, ...]
    stubs: tuple[bytes, ...]
    backends: Mapping[Target, Backend]
    """Those too that may only keep their connections."""
    problems: tuple[BadObject, ...]


class Around(NamedTuple):
    """What decides about a Service beside itself."""

    nodes: Mapping[str, bytes]
    """Name -> the address of a node by which others know it."""
    node: str
    """This one's name."""
    pods: frozenset[Prefix]
    """The ranges of all nodes' pods."""
    hosts: frozenset[bytes]
    """Every address that is known to be a node's, of this one by whatever device."""
    kept: frozenset[tuple[int, int]]
    """(protocol, port) of nodes that no Service may take."""


class Compiler:
    """Remembers what it made of what, so that a change costs little. The result depends on its input alone: whoever
    compiles anew gets the same. Objects that did not change should come as the same objects: to see that is cheap."""

    def __init__(self) -> None:
        self._around: Around | None = None
        self._parts: dict[Ref, Part] = {}
        self._orders: dict[tuple[Target, ...], tuple[tuple[int, ...], bytes]] = {}
        """Backends -> (their ids, what their slots hold)."""
        self._last: tuple[tuple[object, ...], ServiceTables] | None = None
        """What was given last and what came of it, unless another attempt could come to more."""

    def compile(
        self,
        services: tuple[Service, ...],
        slices: tuple[EndpointSlice, ...],
        around: Around,
        before: ServiceTables,
        capacity: int = layout.MAPS["slots"].entries,
    ) -> ServiceTables:
        """`before`: what the maps hold now; `capacity`: of `slots`."""
        given = (services, slices, around, capacity)
        if self._last is not None and self._last[0] == given and before.holds(self._last[1]):
            return self._last[1]
        if self._around != around:
            self._around, self._parts = around, {}
        by_service: dict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
        for item in slices:
            by_service[item.meta.namespace, item.service].append(item)
        self._parts = {
            service.meta.ref: self._part(
                service, by_service.get((service.meta.namespace, service.meta.name), []), around
            )
            for service in services
            if not any(label in service.meta.labels for label in IGNORED_BY)
        }
        tables, whole = self._tables(before, capacity)
        self._last = (given, tables) if whole else None
        return tables

    def _part(self, service: Service, slices: list[EndpointSlice], around: Around) -> Part:
        of: tuple[Service | EndpointSlice, ...] = (service, *slices)
        known = self._parts.get(service.meta.ref)
        return known if known is not None and known.of == of else _part(of, service, slices, around)

    def _tables(self, before: ServiceTables, capacity: int) -> tuple[ServiceTables, bool]:
        """All parts together, and whether there was room for them."""
        frontends: dict[bytes, Frontend] = {}
        stubs: set[bytes] = set()
        backends: dict[Target, Backend] = {}
        owners: dict[str, Ref] = {}
        problems: list[BadObject] = []
        for ref, part in sorted(self._parts.items(), key=_age):  # the older one wins an address
            stubs.update(part.stubs)
            backends.update((t, b) for t, b in part.backends.items() if b.serves or t not in backends)
            problems += part.problems
            for frontend in part.frontends:
                holder = frontends.setdefault(frontend.key, frontend)
                if holder is frontend:
                    owners[frontend.port_id] = ref
                else:
                    reason = f"{_show(frontend.key)} is taken by {owners[holder.port_id]}"
                    problems.append(BadObject(ref, f"spec.ports[{frontend.port_index}]", reason))
        ids, _ = numbers(owners)
        backend_ids, _ = numbers(backend.name for backend in backends.values())
        id_of = {target: backend_ids[backend.name] for target, backend in backends.items()}
        regions, orders, full = _Regions(before, capacity), {}, []
        entries = dict.fromkeys(stubs, NOBODY)
        for key, frontend in sorted(frontends.items()):
            number, targets = ids[frontend.port_id], frontend.targets
            content = orders[targets] = self._order(targets, tuple(map(id_of.__getitem__, targets)))
            first = regions.place(number, content[1])
            if first is None:
                reason = f"the slots map is full ({capacity}): {_show(key)} keeps the backends that it had"
                full.append(BadObject(owners[frontend.port_id], "spec.ports", reason))
                entries[key] = regions.keep(before.services.entries.get(key, layout.Service(number).pack()))
                continue
            slots = len(content[1]) // ID_BYTES
            entries[key] = layout.Service(number, first, slots, frontend.affinity_s, 0, len(targets)).pack()
        self._orders = orders
        return ServiceTables(
            Table("services", entries),
            Table("slots", regions.used),
            Table("backends", {layout.Number(id_of[target]).pack(): item.packed for target, item in backends.items()}),
            {ids[name]: ref for name, ref in owners.items()},
            (*problems, *full),
        ), not full

    def _order(self, targets: tuple[Target, ...], ids: tuple[int, ...]) -> tuple[tuple[int, ...], bytes]:
        known = self._orders.get(targets)
        if known is not None and known[0] == ids:
            return known
        chosen = maglev.order([target.name for target in targets])
        return ids, struct.pack(f"={len(chosen)}I", *(ids[index] for index in chosen))


def _age(item: tuple[Ref, Part]) -> tuple[str, str, str]:
    ref, part = item
    return part.of[0].meta.created, ref.namespace, ref.name


def _part(
    of: tuple[Service | EndpointSlice, ...],
    service: Service,
    slices: Iterable[EndpointSlice],
    around: Around,
) -> Part:
    frontends: list[Frontend] = []
    backends: dict[Target, Backend] = {}
    service, problems = _without_others(_as_its_type(service), around.pods)
    for index, port in enumerate(service.ports):
        if port.protocol not in ("TCP", "UDP"):
            reason = f"protocol {port.protocol} is not balanced"
            problems.append(BadObject(service.meta.ref, f"spec.ports[{index}]", reason))
            continue
        choices = {v4: _choose(slices, port, v4, around.nodes, around.node) for v4 in (True, False)}
        made = list(_frontends(service, index, choices, around.hosts))
        refused = [frontend for frontend in made if _of_a_host(frontend.key, around)]
        frontends += (frontend for frontend in made if frontend not in refused)
        for key in {_show(frontend.key): None for frontend in refused}:
            reason = f"{key} is for the nodes themselves, so it is not served"
            problems.append(BadObject(service.meta.ref, f"spec.ports[{index}]", reason))
        for target, serves in (item for choice in choices.values() for item in choice.known.items()):
            flags = 0 if serves else layout.BACKEND_SILENT
            packed = layout.Backend(target.address, target.node, target.port, flags).pack()
            if serves or target not in backends:
                backends[target] = Backend(f"{target.name} {unpack(target.node)}", serves, packed)
    if service.source_ranges and service.load_balancer_ips:
        reason = "is not enforced yet, so the addresses are refused from outside the cluster"
        problems.append(BadObject(service.meta.ref, "spec.loadBalancerSourceRanges", reason))
    return Part(of, tuple(frontends), tuple(_stubs(service, around)), backends, tuple(problems))


def _of_a_host(packed: bytes, around: Around) -> bool:
    """Whether it would take a port by which a node is managed."""
    key = layout.ServiceKey.unpack(packed)
    return (key.protocol, key.port) in around.kept and (key.address == ANY or key.address in around.hosts)


def _as_its_type(service: Service) -> Service:
    """The Service without what its type does not have, and an earlier type may have left: the API server drops it, a
    folder of manifests does not. Who makes a Service a ClusterIP wants it off the LAN."""
    if service.type == "ExternalName":  # a name for the cluster's DNS, nothing more
        return replace(service, ports=(), external_ips=(), load_balancer_ips=())
    if service.type == "LoadBalancer":
        return service
    if service.type == "NodePort":
        return replace(service, load_balancer_ips=())
    ports = tuple(replace(port, node_port=0) for port in service.ports)
    return replace(service, ports=ports, load_balancer_ips=())


def _without_others(service: Service, pods: frozenset[Prefix]) -> tuple[Service, list[BadObject]]:
    """The Service with addresses that can be its own. The all-zero one would be a node port, of any number."""
    problems = []

    def wrong(address: bytes) -> str:
        if address == ANY:
            return "no address"
        if any(address in range_ for range_ in NOT_ONE_HOSTS):
            return "no address of one host"
        return "an address of pods" if any(address in range_ for range_ in pods) else ""

    def own(path: str, addresses: tuple[bytes, ...]) -> tuple[bytes, ...]:
        reasons = {address: wrong(address) for address in addresses}
        for address, reason in reasons.items():
            if reason:
                text = f"{unpack(address)} is {reason}, so it is not served"
                problems.append(BadObject(service.meta.ref, path, text))
        return tuple(address for address in addresses if not reasons[address])

    kept = replace(
        service,
        cluster_ips=own("spec.clusterIPs", service.cluster_ips),
        load_balancer_ips=own("status.loadBalancer.ingress", service.load_balancer_ips),
        external_ips=own("spec.externalIPs", service.external_ips),
    )
    return kept, problems


def _frontends(
    service: Service, index: int, choices: Mapping[bool, Choice], hosts: frozenset[bytes]
) -> Iterator[Frontend]:
    """Every entry of one service port. `choices`: for IPv4 and for IPv6; `hosts`: addresses of nodes."""
    port = service.ports[index]
    protocol = PROTOCOLS[port.protocol]
    name = f"{service.meta.ref.key} {port.name} {port.port}/{port.protocol}"

    def entry(address: bytes, number: int, scope: int, local: bool, refused: bool = False) -> Frontend:
        v4 = is_v4(address) if address != ANY else True
        targets = () if refused else choices[v4].local if local else choices[v4].live
        key = layout.ServiceKey(address, number, protocol, scope).pack()
        return Frontend(key, index, name, service.affinity_s, targets)

    refused = bool(service.source_ranges)
    for address in service.cluster_ips:
        yield entry(address, port.port, layout.SCOPE_CLUSTER, service.internal_local)
    for address in dict.fromkeys(service.load_balancer_ips):
        yield entry(address, port.port, layout.SCOPE_CLUSTER, False)
        yield entry(address, port.port, layout.SCOPE_WORLD, service.external_local, refused)
    for address in dict.fromkeys(service.external_ips):
        if address in service.load_balancer_ips:
            continue
        if address in hosts:  # from inside only a node's own: anything else could be hijacked (CVE-2020-8554)
            yield entry(address, port.port, layout.SCOPE_CLUSTER, False)
        yield entry(address, port.port, layout.SCOPE_WORLD, service.external_local)
    if port.node_port:
        yield entry(ANY, port.node_port, layout.SCOPE_CLUSTER, False)
        yield entry(ANY, port.node_port, layout.SCOPE_WORLD, service.external_local)


def _choose(
    slices: Iterable[EndpointSlice], port: ServicePort, v4: bool, nodes: Mapping[str, bytes], node: str
) -> Choice:
    """Ready endpoints; if there are none, those that terminate and still serve (KEP-1669). An ingress whose
    node is gone is neither."""
    ready: set[Target] = set()
    serving: set[Target] = set()
    known: dict[Target, bool] = {}
    local: set[Target] = set()
    for item in slices:
        number = next((n for name, proto, n in item.ports if (name, proto) == (port.name, port.protocol)), 0)
        ours = is_ingress(item)
        for endpoint in item.endpoints if number else ():
            if ours and endpoint.node not in nodes:
                continue
            for target in _targets(endpoint, number, v4, nodes):
                known[target] = known.get(target, False) or endpoint.ready or endpoint.serving
                if endpoint.node == node:
                    local.add(target)
                if endpoint.ready:
                    ready.add(target)
                elif endpoint.serving and endpoint.terminating:
                    serving.add(target)
    live = ready or serving
    here = local & ready or local & serving
    return Choice(tuple(sorted(live)), tuple(sorted(here)), known)


def _targets(endpoint: Endpoint, port: int, v4: bool, nodes: Mapping[str, bytes]) -> Iterator[Target]:
    for address in endpoint.addresses[:1]:  # EndpointSlice: several addresses of one endpoint are the same; use one
        if is_v4(address) == v4:
            yield Target(address, port, nodes.get(endpoint.node, ANY))


def _stubs(service: Service, around: Around) -> Iterator[bytes]:
    """Entries for the addresses themselves. Never for a node's own address: its SSH would go with it. A ClusterIP stays
    one where a DNS cache has put it on a device of this node."""
    nodes = around.nodes.values()
    inside = [address for address in service.cluster_ips if address not in nodes]
    inside += (address for address in service.load_balancer_ips if address not in around.hosts)
    outside = [*inside, *(address for address in service.external_ips if address not in around.hosts)]
    for scope, addresses in ((layout.SCOPE_CLUSTER, inside), (layout.SCOPE_WORLD, outside)):
        for address in addresses:
            yield layout.ServiceKey(address, 0, 0, scope).pack()


class _Regions:
    """Where in `slots` each list of backend ids lies. Space that is in use now is given to nothing else."""

    def __init__(self, before: ServiceTables, capacity: int) -> None:
        self.used: dict[bytes, bytes] = {}
        self._slots = before.slots.entries
        self._mine: dict[tuple[int, bytes], bytes] = {}
        slots = before.slots.entries.items()
        busy = sorted((layout.Number.unpack(key).value, len(ids) // ID_BYTES) for key, ids in slots)
        self._free: list[tuple[int, int]] = []
        at = 0
        for first, length in [*busy, (capacity, 0)]:
            if first > at:
                self._free.append((at, first - at))
            at = max(at, first + length)
        self._before = {
            (service.id, before.slots.entries[place]): place
            for service in (
                layout.Service.unpack(value) for value in before.services.entries.values() if value != NOBODY
            )
            if (place := layout.Number(service.first).pack()) in before.slots.entries and service.slots
        }

    def place(self, service: int, content: bytes) -> int | None:
        """The first index of a region of this service that holds `content`; None if there is no room."""
        if not content:
            return 0
        place = self._mine.get((service, content)) or self._before.get((service, content))
        if place is None or (place in self.used and self.used[place] != content):
            place = self._take(len(content) // ID_BYTES)
        if place is None:
            return None
        self._mine[service, content] = place
        self.used[place] = content
        return layout.Number.unpack(place).value

    def keep(self, packed: bytes) -> bytes:
        """A services value as it is in force, with its region if it has one."""
        service = layout.Service.unpack(packed)
        place = layout.Number(service.first).pack()
        if service.slots and place in self._slots:
            self.used[place] = self._slots[place]
        return packed

    def _take(self, length: int) -> bytes | None:
        """First fit."""
        for index, (first, room) in enumerate(self._free):
            if room >= length:
                self._free[index] = (first + length, room - length)
                return layout.Number(first).pack()
        return None


def _show(packed: bytes) -> str:
    key = layout.ServiceKey.unpack(packed)
    at = "node port" if key.address == ANY else unpack(key.address)
    return f"{at} {key.port}/{PROTOCOL_NAMES[key.protocol]}"
