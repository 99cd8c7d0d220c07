"""Rules and identities -> the `policy` table, who enforces, and what the DNS proxy must know.

Entries are per endpoint: (peer, direction, protocol, port prefix) -> action and rule. The programs look up the peer's
identity, ANY, and the name-selectors learned for the address; any deny wins, then any redirect, then any allow. But
within one peer the longest prefix decides alone, so here an allow inside a wider deny of the same peer is left out.

DNS: what rules.dns lets a pod ask is for the proxy to judge, so those entries redirect. A pod that may reach names
must be able to ask for them, and only a question that passes the proxy teaches an address. So every DNS server that it
may talk to, the cluster's included, is reached through the proxy; and if no rule at all lets it talk to the cluster's,
it may ask them for the names of its toFQDNs alone. Where a rule without rules.dns allows a server, any name may be
asked there, as any packet may be sent (Cilium's union: a rule without L7 part allows all of L7).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from netstack.agent.identities import NAMESPACE, Identities, LocalEndpoint, Peer
from netstack.agent.numbers import numbers
from netstack.agent.policy import names
from netstack.agent.policy.ports import prefixes
from netstack.agent.policy.rules import (
    ANY_PROTOCOL,
    PROTOCOLS,
    SCTP,
    TCP,
    UDP,
    Action,
    Block,
    Direction,
    Name,
    Peers,
    Port,
    Rule,
    Spec,
)
from netstack.core.address import Prefix
from netstack.core.ref import Ref, RuleRef
from netstack.core.table import Table
from netstack.kernel import layout

HOST_RULE = RuleRef(Ref("Node", "", "host"), "its own pods")
"""The built-in rule: a node reaches its own pods (kubelet's probes; Cilium's --allow-localhost=auto)."""
EVERYTHING = Name("*", pattern=True)
STRENGTH = {Action.ALLOW: 0, Action.REDIRECT_DNS: 1, Action.DENY: 2}


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """A DNS server of the cluster: its identity and port."""

    identity: int
    port: int


Queries = Mapping[Server, frozenset[Name]]
"""Server (0 = any identity, any port) -> what may be asked there."""


@dataclass(frozen=True, slots=True)
class DnsEndpoint:
    """What the DNS proxy may answer to one endpoint, and what it teaches: names with their selectors."""

    endpoint: int
    addresses: tuple[bytes, ...]
    names: Mapping[Name, int]
    queries: Queries


@dataclass(frozen=True, slots=True)
class PolicyTables:
    policy: Table = field(default_factory=lambda: Table("policy"))
    enforce: Mapping[int, int] = field(default_factory=dict)
    """Endpoint id -> ENFORCE_* bits."""
    rules: Mapping[int, RuleRef] = field(default_factory=dict)
    selects: Mapping[int, tuple[Ref, ...]] = field(default_factory=dict)
    """Endpoint id -> the policies that select it."""
    dns: tuple[DnsEndpoint, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A policy key without its endpoint."""

    peer: int
    direction: Direction
    protocol: int = ANY_PROTOCOL
    port: int = 0
    port_bits: int = 0

    @property
    def bits(self) -> int:
        if not self.protocol:
            return layout.POLICY_BITS_ANY
        return layout.POLICY_BITS_PROTO + self.port_bits

    def covers(self, other: Match) -> bool:
        """Whether every packet of `other` is one of this, for the same peer and direction."""
        if not self.protocol:
            return True
        same = self.port >> (16 - self.port_bits) == other.port >> (16 - self.port_bits)
        return self.protocol == other.protocol and self.port_bits <= other.port_bits and same

    def pack(self, endpoint: int) -> bytes:
        return layout.PolicyKey(self.bits, endpoint, self.peer, self.direction, self.protocol, self.port).pack()


Entries = dict[Match, tuple[Action, RuleRef]]


@dataclass(frozen=True, slots=True)
class _Subject:
    """Endpoints of one identity: they have the same entries."""

    entries: Entries
    enforce: int
    selects: tuple[Ref, ...]
    names: tuple[Name, ...]
    queries: Queries


def compile_policy(
    specs: Iterable[Spec], identities: Identities, endpoints: Iterable[LocalEndpoint], servers: Iterable[Server]
) -> PolicyTables:
    specs = tuple(specs)
    servers = tuple(sorted(set(servers)))
    everything = [name for spec in specs for rule in spec.rules if rule.peers for name in rule.peers.names]
    selectors, _ = numbers((names.key(name) for name in everything), base=names.BASE, bits=names.BITS)
    resolver = _Resolver(identities, {name: selectors[names.key(name)] for name in everything})
    subjects: dict[int, _Subject] = {}
    chosen: dict[int, _Subject] = {}
    order = sorted(endpoints, key=lambda endpoint: endpoint.id)
    for endpoint in order:
        peer = identities.of_endpoint[endpoint.id]
        if peer.number not in subjects:
            subjects[peer.number] = _subject(peer, specs, resolver, servers)
        chosen[endpoint.id] = subjects[peer.number]
    refs = {ref for subject in subjects.values() for _, ref in subject.entries.values()}
    ids, _ = numbers(map(str, refs))
    table = {
        match.pack(number): layout.PolicyRule(ids[str(ref)], action).pack()
        for number, subject in chosen.items()
        for match, (action, ref) in subject.entries.items()
    }
    return PolicyTables(
        policy=Table("policy", table),
        enforce={number: subject.enforce for number, subject in chosen.items()},
        rules={ids[str(ref)]: ref for ref in refs},
        selects={number: subject.selects for number, subject in chosen.items()},
        dns=tuple(
            DnsEndpoint(
                endpoint.id,
                (endpoint.address,),
                {name: resolver.selectors[name] for name in chosen[endpoint.id].names},
                chosen[endpoint.id].queries,
            )
            for endpoint in order
            if chosen[endpoint.id].names or chosen[endpoint.id].queries
        ),
    )


def _subject(peer: Peer, specs: Iterable[Spec], resolver: _Resolver, servers: tuple[Server, ...]) -> _Subject:
    selecting = [spec for spec in specs if spec.subject is not None and spec.subject.matches(peer.labels)]
    denied = {direction for spec in selecting for direction in spec.default_deny}
    rules = [rule for spec in selecting for rule in spec.rules]
    entries: Entries = {}
    queries: dict[Server, frozenset[Name]] = {}
    plain = [] if Direction.EGRESS in denied else [Match(layout.IDENTITY_ANY, Direction.EGRESS)]
    for rule in rules:
        for match in resolver.matches(rule, peer):
            _put(entries, match, rule.action, rule.ref)
            if rule.action is Action.REDIRECT_DNS:
                _may_ask(queries, Server(match.peer, match.port), rule.queries)
            elif rule.action is Action.ALLOW:
                plain.append(match)
    if Direction.INGRESS in denied:
        _put(entries, Match(layout.IDENTITY_HOST, Direction.INGRESS), Action.ALLOW, HOST_RULE)
    named = {rule.ref: rule.peers.names for rule in rules if rule.peers and rule.peers.names}
    names = tuple(sorted(set().union(*named.values())))
    if named:
        for question in (question for match in plain for question in _questions(match, layout.PROXY_PORT)):
            _put(entries, question, Action.REDIRECT_DNS, min(named))
        _ask_the_clusters(entries, queries, names, servers, min(named))
    for port in {match.port for match, (action, _) in entries.items() if action is Action.REDIRECT_DNS}:
        for match in plain:
            if _questions(match, port):
                _may_ask(queries, Server(match.peer, port), (EVERYTHING,))
    return _Subject(
        entries=_without_shadowed(entries),
        enforce=sum(direction.enforce for direction in denied),
        selects=tuple(sorted({spec.ref for spec in selecting})),
        names=names,
        queries=queries,
    )


def _ask_the_clusters(
    entries: Entries,
    queries: dict[Server, frozenset[Name]],
    names: tuple[Name, ...],
    servers: Iterable[Server],
    reason: RuleRef,
) -> None:
    """The cluster's DNS servers through the proxy; for `names` alone where nothing lets the pod talk to them."""
    for server in servers:
        place = Match(server.identity, Direction.EGRESS)
        asked = [question for question in _questions(place, server.port) if _open(entries, question)]
        if not asked:
            asked = _questions(place, server.port)
            _may_ask(queries, server, names)
        for question in asked:
            _put(entries, question, Action.REDIRECT_DNS, reason)


def _questions(match: Match, port: int) -> list[Match]:
    """The part of an egress match that may be DNS questions at `port`."""
    if match.direction is not Direction.EGRESS:
        return []
    exact = (replace(match, protocol=protocol, port=port, port_bits=16) for protocol in (UDP, TCP))
    return [question for question in exact if match.covers(question)]


def _open(entries: Entries, question: Match) -> bool:
    """Whether some entry lets the question go, to the server or to the proxy."""
    peers = (question.peer, layout.IDENTITY_ANY)
    return any(
        match.peer in peers and match.direction is question.direction and match.covers(question)
        for match, (action, _) in entries.items()
        if action is not Action.DENY
    )


def _may_ask(queries: dict[Server, frozenset[Name]], server: Server, names: Iterable[Name]) -> None:
    queries[server] = queries.get(server, frozenset()).union(names)


def _put(entries: Entries, match: Match, action: Action, ref: RuleRef) -> None:
    """Of two actions for one match the stronger stays, of two rules the first by name."""
    old = entries.get(match)
    if old is None or (-STRENGTH[action], ref) < (-STRENGTH[old[0]], old[1]):
        entries[match] = (action, ref)


def _without_shadowed(entries: Entries) -> Entries:
    """Leave out what lies inside a wider deny of the same peer and direction."""
    denies: dict[tuple[int, Direction], list[Match]] = defaultdict(list)
    for match, (action, _) in entries.items():
        if action is Action.DENY:
            denies[match.peer, match.direction].append(match)
    return {
        match: (action, ref)
        for match, (action, ref) in entries.items()
        if action is Action.DENY or not any(deny.covers(match) for deny in denies[match.peer, match.direction])
    }


class _Resolver:
    """Who a rule's peers are, and its ports, as numbers."""

    def __init__(self, identities: Identities, selectors: Mapping[Name, int]) -> None:
        self.selectors = selectors
        self._peers = identities.peers
        self._by_number = {peer.number: peer for peer in identities.peers}
        self._known: dict[Peers, tuple[int, ...]] = {}

    def matches(self, rule: Rule, subject: Peer) -> Iterator[Match]:
        ports = rule.ports or (Port(ANY_PROTOCOL),)
        for number in self._numbers(rule.peers):
            for port in ports:
                if not port.name:
                    yield from _spread(number, rule.direction, port)
                elif rule.direction is Direction.INGRESS:
                    yield from self._named(number, rule.direction, port, (subject,))
                elif number == layout.IDENTITY_ANY:  # a name means something only where a pod gives it
                    for peer in self._peers:
                        yield from self._named(peer.number, rule.direction, port, (peer,))
                else:
                    peers = (self._by_number[number],) if number in self._by_number else ()
                    yield from self._named(number, rule.direction, port, peers)

    def _named(self, number: int, direction: Direction, port: Port, owners: tuple[Peer, ...]) -> Iterator[Match]:
        """`port.name` as the pods of `owners` define it."""
        for owner in owners:
            for name, protocol_name, value in sorted(owner.ports):
                protocol = PROTOCOLS[protocol_name]
                if name == port.name and port.protocol in (ANY_PROTOCOL, protocol):
                    yield from _spread(number, direction, Port(protocol, value, value))

    def _numbers(self, peers: Peers | None) -> tuple[int, ...]:
        if peers is None:
            return (layout.IDENTITY_ANY,)
        if peers not in self._known:
            self._known[peers] = tuple(self._resolve(peers))
        return self._known[peers]

    def _resolve(self, peers: Peers) -> Iterator[int]:
        if "all" in peers.entities:
            yield layout.IDENTITY_ANY
        yield from (self.selectors[name] for name in peers.names)
        for peer in self._peers:
            if (
                peer.entities & peers.entities
                or (peer.labels and any(selector.matches(peer.labels) for selector in peers.selectors))
                or (NAMESPACE in peer.labels and not all(item.matches(peer.labels) for item in peers.lacking))
                or (peer.prefix and any(_inside(peer.prefix, block) for block in peers.blocks))
            ):
                yield peer.number


def _inside(range_: Prefix, block: Block) -> bool:
    """Ranges nest or are apart, so a range is inside a block with all its addresses or with none of its own."""
    return block.prefix.covers(range_) and not any(hole.covers(range_) for hole in block.excluded)


def _spread(number: int, direction: Direction, port: Port) -> Iterator[Match]:
    """One port range as longest-prefix keys. A port of any protocol is one of each that has ports."""
    protocols = (port.protocol,) if port.protocol else (TCP, UDP, SCTP)
    if not port.last:
        yield Match(number, direction, port.protocol)
        return
    for protocol in protocols:
        for value, bits in prefixes(port.first, port.last):
            yield Match(number, direction, protocol, value, bits)
