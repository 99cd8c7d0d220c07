"""Rules -> the entries of the `policy` table for endpoints of one identity, and what the DNS proxy must know of them.

Entries are per endpoint: (peer, direction, protocol, port prefix) -> action and rule. The programs look up the peer's
identity, ANY, and the name-selectors learned for the address; any deny wins, then any redirect, then any allow. But
within one peer the longest prefix decides alone, so here an allow inside a wider deny of the same peer is left out.

DNS: what rules.dns lets a pod ask is for the proxy to judge, so those entries redirect. A pod that may reach names
must be able to ask for them, and only a question that passes the proxy teaches an address. So every DNS server that it
may talk to, the cluster's included, is reached through the proxy; and if no rule at all lets it talk to the cluster's,
it may ask them for the names of its toFQDNs alone. Where a rule without rules.dns allows a server, any name may be
asked there, as any packet may be sent (Cilium's union: a rule without L7 part allows all of L7).

Policies on trial take no part in this. Beside the entries there is a second set, of all policies together, which the
programs only ask what it would deny. For its names to be learned, DNS goes through the proxy wherever that second set
says so and the first lets it pass; nothing is refused there, and the proxy notes what would be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from netstack.agent.identities import Peer
from netstack.agent.policy.peers import Match, Resolver
from netstack.agent.policy.rules import Action, Direction, Name, Port, Spec
from netstack.core.protocol import TCP, UDP
from netstack.core.ref import Ref, RuleRef
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
Entries = dict[Match, tuple[Action, RuleRef]]


@dataclass(frozen=True, slots=True)
class Subject:
    """What endpoints of one identity have in common: all of it."""

    entries: Entries
    enforce: int
    """ENFORCE_* bits."""
    selects: tuple[Ref, ...]
    """The policies that select them."""
    denies: Mapping[Direction, tuple[Ref, ...]]
    """Those of them that deny what no rule allows."""
    names: tuple[Name, ...]
    """What they may reach by name."""
    queries: Queries
    alike: tuple[tuple[Name, ...], ...] = ()
    """Those of the names that open the same ports, with one another."""
    trial: Entries = field(default_factory=dict)
    """What all policies together say, if some are on trial."""
    on_trial: tuple[Ref, ...] = ()
    """Those."""
    tried: tuple[Name, ...] = ()
    """The names that these alone name."""
    passes: Queries = field(default_factory=dict)
    """The servers that these alone keep behind the DNS proxy, and what they would let be asked."""


def subject(peer: Peer, selecting: tuple[Spec, ...], resolver: Resolver, servers: tuple[Server, ...]) -> Subject:
    """For the specs that select `peer`. `servers`: the cluster's DNS."""
    enforced = tuple(spec for spec in selecting if not spec.on_trial)
    real = _subject(peer, enforced, resolver, servers)
    if len(enforced) == len(selecting):
        return real
    trial = _subject(peer, selecting, resolver, servers)
    entries, queries = dict(real.entries), dict(real.queries)
    for match, (action, ref) in trial.entries.items():
        if action is Action.REDIRECT_DNS and _passes(real, match):
            _put(entries, match, action, ref)
            _may_ask(queries, Server(match.peer, match.port), (EVERYTHING,))
    return Subject(
        entries=_without_shadowed(entries),
        enforce=real.enforce | layout.AUDIT | trial.enforce * layout.AUDIT_INGRESS,
        selects=trial.selects,
        denies=trial.denies,
        names=tuple(sorted({*real.names, *trial.names})),
        queries=queries,
        alike=trial.alike,
        trial=trial.entries,
        on_trial=tuple(sorted({spec.ref for spec in selecting if spec.on_trial})),
        tried=tuple(sorted({*trial.names}.difference(real.names))),
        passes={server: _asked(trial, server) for server in queries if not _redirects(real, server)},
    )


def _redirects(real: Subject, server: Server) -> bool:
    asked = (
        question
        for number in (server.identity, layout.IDENTITY_ANY)
        for question in _questions(Match(number, Direction.EGRESS), server.port)
    )
    return any(real.entries[question][0] is Action.REDIRECT_DNS for question in asked if question in real.entries)


def _asked(trial: Subject, server: Server) -> frozenset[Name]:
    """What may be asked of a server."""
    places = (server, replace(server, identity=layout.IDENTITY_ANY))
    return frozenset().union(*(trial.queries.get(place, frozenset()) for place in places))


def _passes(real: Subject, question: Match) -> bool:
    """Whether packets of an egress match reach the server itself, not the proxy."""
    said = set(_said(real.entries, question))
    return said == {Action.ALLOW} if said else not real.enforce & layout.ENFORCE_EGRESS


def _subject(peer: Peer, selecting: Iterable[Spec], resolver: Resolver, servers: tuple[Server, ...]) -> Subject:
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
    if Direction.INGRESS in denied and peer.number != layout.IDENTITY_HOST:
        _put(entries, Match(layout.IDENTITY_HOST, Direction.INGRESS), Action.ALLOW, HOST_RULE)
    named = {rule.ref: rule.peers.names for rule in rules if rule.peers and rule.peers.names}
    names = tuple(sorted(set().union(*named.values())))
    if named:
        reason = min(named)
        for question in (question for match in plain for question in _questions(match, layout.PROXY_PORT)):
            _put(entries, question, Action.REDIRECT_DNS, reason)
        _ask_the_clusters(entries, queries, names, servers, reason)
    whose: dict[Match, list[int]] = defaultdict(list)
    for match in plain:
        whose[match._replace(peer=layout.IDENTITY_ANY)].append(match.peer)
    for port in {match.port for match, (action, _) in entries.items() if action is Action.REDIRECT_DNS}:
        for question in _questions(Match(layout.IDENTITY_ANY, Direction.EGRESS), port):
            for peer_number in (number for wider in question.around() for number in whose.get(wider, ())):
                _may_ask(queries, Server(peer_number, port), (EVERYTHING,))
    return Subject(
        entries=_without_shadowed(entries),
        enforce=sum(direction.enforce for direction in denied),
        selects=tuple(sorted({spec.ref for spec in selecting})),
        denies={way: tuple(sorted({spec.ref for spec in selecting if way in spec.default_deny})) for way in Direction},
        names=names,
        queries=queries,
        alike=_alike(selecting),
    )


def _alike(selecting: Iterable[Spec]) -> tuple[tuple[Name, ...], ...]:
    """Names of which any one opens what each opens: of these, one suffices for an address to which several lead."""
    opens: dict[Name, set[tuple[bool, Port | None]]] = defaultdict(set)
    for spec in selecting:
        for rule in spec.rules:
            for name in rule.peers.names if rule.peers else ():
                opens[name].update((spec.on_trial, port) for port in rule.ports or (None,))
    groups: dict[tuple[bool, frozenset[tuple[bool, Port | None]]], list[Name]] = defaultdict(list)
    for name in sorted(opens):
        groups[name.lan, frozenset(opens[name])].append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


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
            _may_ask(queries, server, (replace(name, lan=False) for name in names))
        for question in asked:
            _put(entries, question, Action.REDIRECT_DNS, reason)


def _questions(match: Match, port: int) -> list[Match]:
    """The part of an egress match that may be DNS questions at `port`."""
    if match.direction is not Direction.EGRESS:
        return []
    exact = (match._replace(protocol=protocol, port=port, port_bits=16) for protocol in (UDP, TCP))
    return [question for question in exact if match.covers(question)]


def _open(entries: Entries, question: Match) -> bool:
    """Whether some entry lets the question go, to the server or to the proxy."""
    return any(action is not Action.DENY for action in _said(entries, question))


def _said(entries: Entries, question: Match) -> Iterator[Action]:
    """What entries say of it, of its peer or of anybody."""
    for number in {question.peer, layout.IDENTITY_ANY}:
        yield from (entries[wider][0] for wider in question._replace(peer=number).around() if wider in entries)


def _may_ask(queries: dict[Server, frozenset[Name]], server: Server, names: Iterable[Name]) -> None:
    queries[server] = queries.get(server, frozenset()).union(names)


def _put(entries: Entries, match: Match, action: Action, ref: RuleRef) -> None:
    """Of two actions for one match the stronger stays, of two rules the first by name."""
    old = entries.get(match)
    if old is None or (-STRENGTH[action], ref) < (-STRENGTH[old[0]], old[1]):
        entries[match] = (action, ref)


def _without_shadowed(entries: Entries) -> Entries:
    """Leave out what lies inside a wider deny of the same peer and direction."""
    denies = {match for match, (action, _) in entries.items() if action is Action.DENY}
    denied = {(match.peer, match.direction) for match in denies}
    return {
        match: (action, ref)
        for match, (action, ref) in entries.items()
        if action is Action.DENY or (match.peer, match.direction) not in denied or denies.isdisjoint(match.around())
    }
