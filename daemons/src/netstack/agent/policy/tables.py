"""All policies and identities -> the `policy` table of this node, who enforces, and the DNS proxy's rules.

A `Compiler` remembers what it made of what, so that a change costs what it touches. The result depends on its input
alone: whoever compiles anew gets the same (tests/instruments/cluster.py compares the two after every change). Policies
that did not change should come as the same objects (accept.py): to see that is cheap, and to select pods again is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from netstack.agent.identities import Identities, LocalEndpoint, Peer
from netstack.agent.numbers import numbers
from netstack.agent.policy import names
from netstack.agent.policy.entries import Queries, Server, Subject, subject
from netstack.agent.policy.host import Kept, keep
from netstack.agent.policy.peers import Resolver
from netstack.agent.policy.rules import Direction, Name, Spec
from netstack.core.ref import Ref, RuleRef
from netstack.core.table import Table
from netstack.kernel import layout


@dataclass(frozen=True, slots=True)
class DnsEndpoint:
    """What the DNS proxy may answer to one endpoint, and what it teaches: names with their selectors."""

    endpoint: int
    addresses: tuple[bytes, ...]
    names: Mapping[Name, int]
    queries: Queries
    alike: tuple[tuple[int, ...], ...] = ()
    """Selectors that open the same ports."""
    tried: tuple[int, ...] = ()
    """Selectors of policies on trial alone."""
    passes: Queries = field(default_factory=dict)
    """Servers that these alone keep behind the proxy, and what they would let be asked."""


@dataclass(frozen=True, slots=True)
class PolicyTables:
    policy: Table = field(default_factory=lambda: Table("policy"))
    enforce: Mapping[int, int] = field(default_factory=dict)
    """Endpoint id -> ENFORCE_* and AUDIT* bits."""
    rules: Mapping[int, RuleRef] = field(default_factory=dict)
    selects: Mapping[int, tuple[Ref, ...]] = field(default_factory=dict)
    """Endpoint id -> the policies that select it."""
    denies: Mapping[int, Mapping[Direction, tuple[Ref, ...]]] = field(default_factory=dict)
    """Endpoint id -> those of them that deny what no rule allows."""
    on_trial: Mapping[int, tuple[Ref, ...]] = field(default_factory=dict)
    """Endpoint id -> those of them that only say what they would deny."""
    dns: tuple[DnsEndpoint, ...] = ()


@dataclass(slots=True)
class _Made:
    """A subject, of what it was made, and what became of it in the table."""

    peer: Peer
    specs: tuple[Spec, ...]
    at: tuple[object, ...]
    """The state of everything else, when it last was found to be as it should be."""
    depends: tuple[object, ...]
    """What of that state it was made of."""
    subject: Subject
    refs: frozenset[RuleRef]
    packed: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    """By endpoint id."""


class Compiler:
    def __init__(self) -> None:
        self._resolver = Resolver()
        self._names: tuple[frozenset[Name], dict[Name, int]] = frozenset(), {}
        self._selected: dict[int, tuple[Spec, set[int]]] = {}
        """By id() of the spec: the identities that it selects, of those that are asked about."""
        self._asked: dict[int, Peer] = {}
        self._made: dict[int, _Made] = {}
        self._refs: frozenset[RuleRef] = frozenset()
        self._rules: dict[RuleRef, int] = {}

    def compile(
        self,
        specs: tuple[Spec, ...],
        identities: Identities,
        endpoints: Iterable[LocalEndpoint],
        servers: Iterable[Server],
        kept: Kept,
    ) -> PolicyTables:
        """`kept`: what policies for this node leave reachable; the node is the endpoint layout.HOST_ENDPOINT."""
        servers = tuple(sorted(set(servers)))
        order = sorted(endpoints, key=lambda endpoint: endpoint.id)
        peers = {endpoint.id: identities.of_endpoint[endpoint.id] for endpoint in order}
        used = [rule.peers for spec in specs for rule in spec.rules if rule.peers is not None]
        self._resolver.update(identities, self._selectors(name for item in used for name in item.names), used)
        subjects = {peer.number: peer for peer in peers.values()}
        selecting = self._selecting(specs, subjects)
        self._made = {number: self._make(peer, selecting[number], servers, kept) for number, peer in subjects.items()}
        self._number()
        made = {number: self._made[peer.number] for number, peer in peers.items()}
        table: dict[bytes, bytes] = {}
        for number, item in made.items():
            table.update(self._pack(number, item))
        return PolicyTables(
            policy=Table("policy", table),
            enforce={number: item.subject.enforce for number, item in made.items()},
            rules={number: ref for ref, number in self._rules.items()},
            selects={number: item.subject.selects for number, item in made.items()},
            denies={number: item.subject.denies for number, item in made.items()},
            on_trial={number: item.subject.on_trial for number, item in made.items() if item.subject.on_trial},
            dns=tuple(self._dns(endpoint, made[endpoint.id].subject) for endpoint in order if _asks(made[endpoint.id])),
        )

    def _selectors(self, wanted: Iterable[Name]) -> Mapping[Name, int]:
        """The number of each name-selector."""
        found = frozenset(wanted)
        if found != self._names[0]:
            texts, _ = numbers((names.key(name) for name in found), base=names.BASE, bits=names.BITS)
            self._names = found, {name: texts[names.key(name)] for name in found}
        return self._names[1]

    def _selecting(self, specs: tuple[Spec, ...], subjects: Mapping[int, Peer]) -> dict[int, tuple[Spec, ...]]:
        """Identity -> the specs that select it, in their order."""
        new = {number: peer for number, peer in subjects.items() if self._asked.get(number) != peer}
        old = self._asked.keys() & subjects.keys() - new.keys()
        same = not new and len(old) == len(self._asked)
        selected: dict[int, tuple[Spec, set[int]]] = {}
        found: dict[int, list[Spec]] = {number: [] for number in subjects}
        for spec in specs:
            known = self._selected.get(id(spec))
            if known and same:
                kept = known[1]
            else:
                kept = known[1] & old if known else set()
                kept.update(number for number, peer in (new if known else subjects).items() if _selects(spec, peer))
            selected[id(spec)] = spec, kept
            for number in kept:
                found[number].append(spec)
        self._selected, self._asked = selected, dict(subjects)
        return {number: tuple(items) for number, items in found.items()}

    def _make(self, peer: Peer, specs: tuple[Spec, ...], servers: tuple[Server, ...], kept: Kept) -> _Made:
        """What was made before, if nothing of what it was made of has changed."""
        at = (self._resolver.version, servers, kept)
        old = self._made.get(peer.number)
        if old is not None and (old.peer, old.specs) != (peer, specs):
            old = None
        if old is not None and old.at == at:
            return old
        rules = [rule for spec in specs for rule in spec.rules]
        by_name = any(port.name for rule in rules for port in rule.ports)
        depends: tuple[object, ...] = tuple(self._resolver.numbers(rule.peers) for rule in rules)
        host = peer.number == layout.IDENTITY_HOST
        depends += (servers, self._resolver.version if by_name or host else 0, kept if host else None)
        if old is not None and old.depends == depends:
            old.at = at
            return old
        made = subject(peer, specs, self._resolver, servers)
        if host:
            made = keep(made, kept, self._resolver, servers)
        refs = frozenset(ref for entries in (made.entries, made.trial) for _, ref in entries.values())
        return _Made(peer, specs, at, depends, made, refs)

    def _number(self) -> None:
        """Give each rule its number. Packed entries hold numbers: if one is another now, they are packed anew."""
        refs = frozenset().union(*(item.refs for item in self._made.values()))
        if refs == self._refs:
            return
        ids, _ = numbers(map(str, refs))
        rules = {ref: ids[str(ref)] for ref in refs}
        if any(self._rules.get(ref, number) != number for ref, number in rules.items()):
            for item in self._made.values():
                item.packed.clear()
        self._refs, self._rules = refs, rules

    def _pack(self, endpoint: int, item: _Made) -> dict[bytes, bytes]:
        if endpoint not in item.packed:
            item.packed[endpoint] = {
                match.pack(endpoint, on_trial=on_trial): layout.PolicyRule(self._rules[ref], action).pack()
                for on_trial, entries in ((False, item.subject.entries), (True, item.subject.trial))
                for match, (action, ref) in entries.items()
            }
        return item.packed[endpoint]

    def _dns(self, endpoint: LocalEndpoint, its: Subject) -> DnsEndpoint:
        selectors = {name: self._resolver.selectors[name] for name in its.names}
        alike = tuple(tuple(sorted(selectors[name] for name in group)) for group in its.alike)
        tried = tuple(sorted(selectors[name] for name in its.tried))
        return DnsEndpoint(endpoint.id, (endpoint.address,), selectors, its.queries, alike, tried, its.passes)


def _selects(spec: Spec, peer: Peer) -> bool:
    if spec.subject is None or spec.nodes != (peer.number == layout.IDENTITY_HOST):
        return False
    return spec.subject.matches(peer.labels)


def _asks(item: _Made) -> bool:
    return bool(item.subject.names or item.subject.queries)
