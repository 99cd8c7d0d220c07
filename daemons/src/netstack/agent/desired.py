"""The whole compile: objects and this node's endpoints in; every table, route and DNS rule out. Pure.

What has to be remembered between two compiles goes in and comes out: the tables in force (`services.py` keeps regions
of slots where they are) and the last good version of each policy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from netstack.agent.fit import Holders, fitting
from netstack.agent.identities import WORLDS, Census, Identities, LocalEndpoint, View, tell
from netstack.agent.order import NAMES, Tables, begun
from netstack.agent.policy.accept import READERS, Accepted, RawSpecs, Readings, accept, on_trial
from netstack.agent.policy.entries import Queries, Server
from netstack.agent.policy.host import Kept
from netstack.agent.policy.names import OWN_NAMESPACE
from netstack.agent.policy.references import Referred, resolve
from netstack.agent.policy.rules import Spec
from netstack.agent.policy.tables import Compiler, PolicyTables
from netstack.agent.routes import Wanted, compile_routes, contradictions
from netstack.agent.services import Around, ServiceTables
from netstack.agent.services import Compiler as ServiceCompiler
from netstack.core.address import ANY, Prefix, is_v4, unpack
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.core.table import Table
from netstack.kernel import layout
from netstack.source.models import CIDRGroup, EndpointSlice, Namespace, Node, Pod, Policy, Service
from netstack.source.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Place:
    """Where this node stands."""

    node: str
    addresses: tuple[bytes, ...]
    """This node's; the first is the one that others know."""
    pod_cidrs: tuple[Prefix, ...]
    uplink: int = 0
    """ifindex"""
    ranges: tuple[Prefix, ...] = ()
    """The cluster's: of all pods, of all services."""
    ingress_services: tuple[Ref, ...] = ()
    """The Services for whose pods the ingress endpoint stands; the first that exists lends it its labels."""
    dns_services: tuple[Ref, ...] = ()
    dns_caches: tuple[bytes, ...] = ()
    """This node's addresses at which a cache answers for the cluster's DNS."""
    dns_search: tuple[str, ...] = ()
    """Search domains of pods (settings.py)."""
    ranges_match: frozenset[str] = frozenset()
    """What ranges in policies mean beside the world (identities.RANGES_MATCH)."""
    kept: Kept = field(default_factory=Kept)
    """What policies for nodes leave reachable."""
    more_addresses: tuple[bytes, ...] = ()
    """Whatever else leads to this node: of other devices, broadcasts. No other node knows them."""
    lan: tuple[Prefix, ...] = ()
    """What the uplink reaches without a router."""

    def own(self, *, v4: bool) -> bytes:
        """This node's address of a family; ANY if it has none."""
        return next((address for address in self.addresses if is_v4(address) == v4), ANY)

    @property
    def host(self) -> LocalEndpoint:
        """The node as an endpoint (files/bpf/lib/host.h)."""
        address = self.own(v4=True) if self.own(v4=True) != ANY else self.own(v4=False)
        return LocalEndpoint(layout.HOST_ENDPOINT, address, Ref("Node", "", self.node), 0, bytes(6), bytes(6))


@dataclass(frozen=True, slots=True)
class Before:
    """What is in force."""

    tables: Tables = field(default_factory=lambda: {name: Table(name) for name in NAMES})
    good: Mapping[Ref, RawSpecs] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be in force, and why."""

    tables: Tables
    routes: frozenset[Wanted]
    identities: Identities
    policy: PolicyTables
    accepted: Accepted
    owners: Mapping[int, Ref]
    """Service id -> object."""
    problems: tuple[str, ...]
    overflows: Mapping[str, str]
    """Map that is too small -> what to say (fit.py)."""
    generation: int
    kept: Kept = field(default_factory=Kept)
    """What policies for nodes leave reachable."""
    between: bool = False
    """`tables` are a step on the way (fit.py): when they are in force, compile again."""
    search: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Endpoint id -> the search domains of the pod."""
    lan: tuple[Prefix, ...] = ()
    """What the uplink reaches without a router."""
    contradictions: tuple[str, ...] = ()
    """What Node objects say otherwise of this node than its settings."""

    def dns_rules(self) -> str:
        """The DNS proxy's rules file (netstack.dns.rules has the form)."""
        endpoints = [
            {
                "endpoint": item.endpoint,
                "addresses": [unpack(address) for address in item.addresses],
                "search": list(self.search.get(item.endpoint, ())),
                "names": [
                    {"selector": number, name.field: name.text, **({"lan": True} if name.lan else {})}
                    for name, number in sorted(item.names.items())
                ],
                **({"alike": sorted(map(list, item.alike))} if item.alike else {}),
                **({"tried": list(item.tried)} if item.tried else {}),
                "queries": _queries(item.queries),
                **({"passes": _queries(item.passes)} if item.passes else {}),
            }
            for item in self.policy.dns
        ]
        whole = {"generation": self.generation, "lan": list(map(str, self.lan)), "endpoints": endpoints}
        return json.dumps(whole, indent=1) + "\n"


def _queries(queries: Queries) -> list[dict[str, Any]]:
    return [
        {"to": server.identity, "port": server.port, "names": [{n.field: n.text} for n in sorted(names)]}
        for server, names in sorted(queries.items())
    ]


@dataclass(frozen=True, slots=True)
class Memory:
    """What makes the next compile cheaper, and changes nothing in its result."""

    readings: Readings = field(default_factory=Readings)
    people: Census = field(default_factory=Census)
    services: ServiceCompiler = field(default_factory=ServiceCompiler)
    policies: Compiler = field(default_factory=Compiler)


def compile_all(
    snapshot: Snapshot,
    endpoints: tuple[LocalEndpoint, ...],
    place: Place,
    before: Before,
    sizes: Mapping[str, int],
    memory: Memory | None = None,
) -> Desired:
    """`sizes`: capacity of each map. What does not fit is left as it is, whole, and said in `problems` (fit.py)."""
    memory = memory or Memory()
    nodes = snapshot.all(Node)
    node_address = {node.meta.name: node.addresses[0] for node in nodes if node.addresses}
    node_address[place.node] = place.addresses[0]
    services = memory.services.compile(
        snapshot.all(Service),
        snapshot.all(EndpointSlice),
        Around(
            node_address,
            place.node,
            pods=frozenset({*place.pod_cidrs, *(cidr for node in nodes for cidr in node.pod_cidrs)}),
            hosts=frozenset({*place.addresses, *place.more_addresses, *(a for node in nodes for a in node.addresses)}),
            kept=place.kept.ports,
        ),
        ServiceTables(before.tables["services"], before.tables["slots"], before.tables["backends"]),
        sizes["slots"],
    )
    accepted = accept_all(snapshot, before.good, memory.readings)
    specs, lacking = resolve(accepted.specs, referred(snapshot))
    identities, policy = who_may(snapshot, endpoints, place, specs, memory)
    tables = {
        **{table.name: table for table in (services.services, services.slots, services.backends)},
        "policy": policy.policy,
        "identities": identities.table,
        "endpoints": _endpoints((*endpoints, place.host), identities, policy),
    }
    fitted = fitting(tables, before.tables, sizes, _holders(services, policy, specs, endpoints))
    generation = _generation(before.tables, fitted.tables)
    config = Table("config", {layout.Number(0).pack(): _config(place, generation, fitted.tables["endpoints"]).pack()})
    tables = {**fitted.tables, "config": begun(before.tables["config"]) if fitted.between else config}
    return Desired(
        tables=tables,
        routes=compile_routes(nodes, place.node, place.ranges),
        identities=identities,
        policy=policy,
        accepted=accepted,
        owners=services.owners,
        problems=(*map(str, services.problems), *identities.problems, *lacking, *fitted.overflows.values()),
        overflows=fitted.overflows,
        between=fitted.between,
        generation=generation,
        kept=place.kept,
        search={item.id: _search(place.dns_search, item.ref.namespace) for item in endpoints},
        lan=place.lan,
        contradictions=tuple(contradictions(nodes, place.node, place.addresses, place.pod_cidrs)),
    )


def _search(domains: tuple[str, ...], namespace: str) -> tuple[str, ...]:
    return tuple(domain.replace(OWN_NAMESPACE, namespace) for domain in domains)


def accept_all(snapshot: Snapshot, good: Mapping[Ref, RawSpecs], readings: Readings) -> Accepted:
    """Which version of each policy is in force. `good`: the last good ones."""
    trials = {item.meta.name for item in snapshot.all(Namespace) if on_trial(item.meta)}
    return accept(snapshot.all(Policy), good, _unreadable(snapshot), readings, trials)


def referred(snapshot: Snapshot) -> Referred:
    """What rules may name."""
    unread = tuple(sorted(_never_read(snapshot)))
    return Referred(snapshot.all(Service), snapshot.all(EndpointSlice), snapshot.all(CIDRGroup), unread)


def who_may(
    snapshot: Snapshot,
    endpoints: tuple[LocalEndpoint, ...],
    place: Place,
    specs: tuple[Spec, ...],
    memory: Memory,
) -> tuple[Identities, PolicyTables]:
    """Who is who, and what the specs (without references: references.py) let this node's endpoints do."""
    dns = _dns_addresses(snapshot, place.dns_services) | {(cache, layout.PROXY_PORT) for cache in place.dns_caches}
    peers = [rule.peers for spec in specs for rule in spec.rules if rule.peers]
    blocks = [block for item in peers for block in item.blocks]
    selectors = {ref: _selector(snapshot, ref) for ref in place.ingress_services}
    view = View(
        node=place.node,
        own_addresses=(*place.addresses, *place.more_addresses, *place.dns_caches),
        own_cidrs=place.pod_cidrs,
        nodes=snapshot.all(Node),
        pods=snapshot.all(Pod),
        namespaces=snapshot.all(Namespace),
        slices=tuple(filter(tell, snapshot.all(EndpointSlice))),
        endpoints=endpoints,
        prefixes=frozenset(
            {prefix for block in blocks for prefix in (block.prefix, *block.excluded)}
            | {range_ for entity, range_ in WORLDS.items() if any(entity in item.entities for item in peers)}
            | {Prefix(address, 128) for address, _ in dns}
        ),
        ranges_match=place.ranges_match,
        ingress_services={ref: labels for ref, labels in selectors.items() if labels},
    )
    identities = memory.people.identities(view)
    servers = {Server(identities.at(address), port) for address, port in dns}
    node = snapshot.get(Node, "Node", "", place.node)
    labels = node.meta.labels if node else {}
    if any(spec.nodes and spec.subject is not None and spec.subject.matches(labels) for spec in specs):
        host = next(peer for peer in identities.peers if peer.number == layout.IDENTITY_HOST)
        itself = {layout.HOST_ENDPOINT: replace(host, labels=labels)}
        identities = replace(identities, of_endpoint={**identities.of_endpoint, **itself})
        endpoints = (*endpoints, place.host)
    return identities, memory.policies.compile(specs, identities, endpoints, servers, place.kept)


def _selector(snapshot: Snapshot, ref: Ref) -> Mapping[str, str]:
    service = snapshot.get(Service, ref.kind, ref.namespace, ref.name)
    return service.selector if service else {}


def _dns_addresses(snapshot: Snapshot, services: tuple[Ref, ...]) -> set[tuple[bytes, int]]:
    """Where the cluster's DNS servers answer: the backends of port 53 of these Services."""
    found = set()
    for ref in services:
        service = snapshot.get(Service, ref.kind, ref.namespace, ref.name)
        names = {port.name for port in service.ports if port.port == layout.PROXY_PORT} if service else set()
        for item in snapshot.all(EndpointSlice):
            if (item.meta.namespace, item.service) != (ref.namespace, ref.name):
                continue
            ports = {number for name, _, number in item.ports if name in names}
            found |= {(address, port) for entry in item.endpoints for address in entry.addresses for port in ports}
    return found


def _endpoints(endpoints: tuple[LocalEndpoint, ...], identities: Identities, policy: PolicyTables) -> Table:
    proxied = {item.endpoint: layout.PROXIED for item in policy.dns}
    entries = {}
    for endpoint in endpoints:
        if endpoint.id in policy.enforce:
            enforce = policy.enforce[endpoint.id] | proxied.get(endpoint.id, 0)
            identity = identities.of_endpoint[endpoint.id].number
            entries[endpoint.address] = _packed(
                endpoint.id, endpoint.ifindex, identity, enforce, endpoint.mac, endpoint.host_mac
            )
    return Table("endpoints", entries)


@lru_cache(4096)
def _packed(number: int, ifindex: int, identity: int, enforce: int, mac: bytes, host_mac: bytes) -> bytes:
    """Most endpoints stay as they are."""
    return layout.Endpoint(number, ifindex, identity, enforce, mac, host_mac).pack()


def _unreadable(snapshot: Snapshot) -> dict[Ref, BadObject]:
    """Policies of which the source has no version at all (law 4 says what they mean)."""
    return {ref: error for ref, error in _never_read(snapshot).items() if ref.kind in READERS}


def _never_read(snapshot: Snapshot) -> dict[Ref, BadObject]:
    """Objects of which the source has no version at all."""
    found = {broken.error.ref: broken.error for broken in snapshot.broken if not broken.kept}
    return {ref: error for ref, error in found.items() if ref not in snapshot.objects}


def _holders(
    services: ServiceTables, policy: PolicyTables, specs: tuple[Spec, ...], endpoints: tuple[LocalEndpoint, ...]
) -> Holders:
    """What the entries of each map are for."""

    def frontends(weigh: Callable[[layout.Service], int]) -> Counter[str]:
        found: Counter[str] = Counter()
        for service in map(layout.Service.unpack, services.services.entries.values()):
            if service.id in services.owners:
                found[str(services.owners[service.id])] += weigh(service)
        return found

    def rules() -> Counter[str]:
        numbers = (layout.PolicyRule.unpack(value).rule for value in policy.policy.entries.values())
        return Counter(str(policy.rules[number].ref) for number in numbers if number in policy.rules)

    def ranges() -> Counter[str]:
        found: Counter[str] = Counter()
        for spec in specs:
            blocks = [block for rule in spec.rules if rule.peers for block in rule.peers.blocks]
            found[str(spec.ref)] += sum(1 + len(block.excluded) for block in blocks)
        return +found

    def pods() -> Counter[str]:
        return Counter({"the pods of this node": len(endpoints)})

    return {
        "services": lambda: frontends(lambda _: 1),
        "backends": lambda: frontends(lambda service: service.backends),
        "policy": rules,
        "identities": ranges,
        "endpoints": pods,
        "conntrack": pods,
    }


def _generation(old: Tables, new: Tables) -> int:
    """One more than what is in force if anything that judges flows changed, or did and nobody came to say so."""
    raw = old["config"].entries.get(layout.Number(0).pack())
    config = layout.Config.unpack(raw) if raw else layout.Config()
    changed = any(old[name].entries != new[name].entries for name in ("policy", "identities", "endpoints"))
    changed |= bool(config.unfinished)
    return (config.generation + changed) % (1 << 32) if config.generation else 1


def _config(place: Place, generation: int, endpoints: Table) -> layout.Config:
    node4, node6 = place.own(v4=True), place.own(v4=False)
    host = place.host.address in endpoints.entries
    nowhere = Prefix(ANY, 0)
    pods4 = next((cidr for cidr in place.pod_cidrs if is_v4(cidr.address)), nowhere)
    pods6 = next((cidr for cidr in place.pod_cidrs if not is_v4(cidr.address)), nowhere)
    return layout.Config(
        node4, pods4.address, pods4.bits, node6, pods6.address, pods6.bits, place.uplink, generation, host
    )
