"""Who the peers of a rule are, and what its ports: as the numbers of policy keys.

A `Resolver` is kept between two compiles. When identities come or go, each list of peers is asked about those alone,
and a list for which nothing changed answers with the same tuple as before: by that, who depends on it sees that nothing
has changed (tables.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from netstack.agent.identities import NAMESPACE, Around, Identities, Peer
from netstack.agent.policy.ports import prefixes
from netstack.agent.policy.rules import (
    ANY_PROTOCOL,
    PROTOCOLS,
    Direction,
    Name,
    Peers,
    Port,
    Rule,
)
from netstack.core.address import Prefix
from netstack.core.protocol import SCTP, TCP, UDP
from netstack.kernel import layout

ANYONE = (layout.IDENTITY_ANY,)
NOWHERE = Around(())


class Match(NamedTuple):
    """A policy key without its endpoint. A tuple (as core/ref.py says why): a subject has hundreds."""

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

    def around(self) -> Iterator[Match]:
        """Every one that covers it, itself too."""
        yield self._replace(protocol=ANY_PROTOCOL, port=0, port_bits=0)
        for bits in range(self.port_bits + 1 if self.protocol else 0):
            yield self._replace(port=self.port >> 16 - bits << 16 - bits, port_bits=bits)

    def pack(self, endpoint: int, *, on_trial: bool = False) -> bytes:
        direction = self.direction + layout.DIRECTION_AUDIT * on_trial
        return layout.PolicyKey(self.bits, endpoint, self.peer, direction, self.protocol, self.port).pack()


class Resolver:
    def __init__(self) -> None:
        self.selectors: Mapping[Name, int] = {}
        self.version = 0
        """Another one whenever an identity came, went or changed, or a name-selector did."""
        self._listed: tuple[Peer, ...] = ()
        self._peers: dict[int, Peer] = {}
        self._everyone = _Some(())
        self._known: dict[int, tuple[_Who, tuple[int, ...]]] = {}
        """By id() of the Peers, which unchanged policies keep: their content is slow to hash."""

    def update(self, identities: Identities, selectors: Mapping[Name, int], used: Iterable[Peers]) -> None:
        """From now on answer for these identities, and remember no Peers but those `used`."""
        renamed = selectors != self.selectors
        known = {} if renamed else self._known
        self.selectors = selectors
        self._known = {id(peers): known[id(peers)] for peers in used if id(peers) in known}
        self.version += self._meet(identities.peers) or renamed

    def _meet(self, listed: tuple[Peer, ...]) -> bool:
        """True if these identities are others than those of the last time."""
        if listed is self._listed:
            return False
        now = {peer.number: peer for peer in listed}
        come = [peer for number, peer in now.items() if self._peers.get(number) != peer]
        gone = {number for number, peer in self._peers.items() if now.get(number) != peer}
        self._listed, self._peers, self._everyone = listed, now, _Some(now.values())
        some = _Some(come)
        for key, (who, numbers) in self._known.items() if come or gone else ():
            changed = (
                *(number for number in numbers if number not in gone),
                *some.meant(who),
            )
            if changed != numbers:
                self._known[key] = who, changed
        return bool(come or gone)

    def everyone(self) -> Iterable[int]:
        """All identities."""
        return self._peers

    def of_entity(self, entity: str) -> tuple[int, ...]:
        """The identities that are this entity."""
        return tuple(number for number, peer in sorted(self._peers.items()) if entity in peer.entities)

    def numbers(self, peers: Peers | None) -> tuple[int, ...]:
        """Identities and name-selectors; the very same tuple as long as it holds the same."""
        if peers is None:
            return ANYONE
        found = self._known.get(id(peers))
        if found is None:
            who = _Who(peers)
            found = self._known[id(peers)] = who, tuple(self._resolve(who))
        return found[1]

    def matches(self, rule: Rule, subject: Peer) -> Iterator[Match]:
        """Every key of the rule in the entries of endpoints that have the identity `subject`."""
        for number in self.numbers(rule.peers):
            if not rule.ports:
                yield Match(number, rule.direction)
            for port in rule.ports:
                if not port.name:
                    yield from _spread(number, rule.direction, port)
                elif rule.direction is Direction.INGRESS:
                    yield from _named(number, rule.direction, port, subject)
                elif number == layout.IDENTITY_ANY:  # a name means something only where a pod gives it
                    for peer in self._peers.values():
                        yield from _named(peer.number, rule.direction, port, peer)
                elif number in self._peers:
                    yield from _named(number, rule.direction, port, self._peers[number])

    def _resolve(self, who: _Who) -> Iterator[int]:
        if "all" in who.peers.entities:
            yield layout.IDENTITY_ANY
        yield from (self.selectors[name] for name in who.peers.names)
        yield from self._everyone.meant(who)


class _Some:
    """Some identities. Those that are ranges are found by their place, so that rules for ranges, of which one policy
    may have thousands, need not ask about each."""

    def __init__(self, peers: Iterable[Peer]) -> None:
        self._peers = tuple(peers)
        self._ranges = sorted(
            (int.from_bytes(peer.prefix.address), at) for at, peer in enumerate(self._peers) if peer.prefix
        )
        """Where each begins, and which it is."""

    def meant(self, who: _Who) -> Iterator[int]:
        """The numbers of those that are meant."""
        return (peer.number for peer in self._possible(who) if who.has(peer))

    def _possible(self, who: _Who) -> Iterable[Peer]:
        if who.peers.entities or who.peers.selectors or who.peers.lacking:
            return self._peers
        found = set[int]()
        for first, end in who.spans:
            within = slice(*(bisect_left(self._ranges, (place, 0)) for place in (first, end)))
            found.update(at for _, at in self._ranges[within])
        return (self._peers[at] for at in sorted(found))


class _Who:
    """Who is meant by some Peers."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self._blocks = Around(block.prefix for block in peers.blocks)
        self._holes: dict[Prefix, list[Around]] = defaultdict(list)
        """By the range that they are in."""
        for block in peers.blocks:
            self._holes[block.prefix].append(Around(block.excluded) if block.excluded else NOWHERE)
        starts = ((int.from_bytes(outer.address), outer.bits) for outer in self._holes)
        self.spans = [(first, first + (1 << 128 - bits)) for first, bits in starts]
        """Where the ranges begin, and where what comes after them does."""

    def has(self, peer: Peer) -> bool:
        peers = self.peers
        return bool(
            peer.entities & peers.entities
            or (peer.labels and any(selector.matches(peer.labels) for selector in peers.selectors))
            or (NAMESPACE in peer.labels and not all(item.matches(peer.labels) for item in peers.lacking))
            or (peer.prefix and self._inside(peer.prefix))
        )

    def _inside(self, range_: Prefix) -> bool:
        """Ranges nest or are apart, so a range is inside a block with all its addresses or with none of its own."""
        return any(holes(range_) is None for outer in self._blocks.every(range_) for holes in self._holes[outer])


def _named(number: int, direction: Direction, port: Port, owner: Peer) -> Iterator[Match]:
    """`port.name` as the pods of `owner` define it."""
    for name, protocol_name, value in sorted(owner.ports):
        protocol = PROTOCOLS[protocol_name]
        if name == port.name and port.protocol in (ANY_PROTOCOL, protocol):
            yield from _spread(number, direction, Port(protocol, value, value))


def _spread(number: int, direction: Direction, port: Port) -> Iterator[Match]:
    """One port range as longest-prefix keys. A port of any protocol is one of each that has ports, every port too
    (cilium pkg/policy/rule.go, mergeIngress): ICMP is for a rule that names no ports, or `icmps`."""
    for protocol in (port.protocol,) if port.protocol else (TCP, UDP, SCTP):
        for value, bits in prefixes(port.first, port.last) if port.last else ((0, 0),):
            yield Match(number, direction, protocol, value, bits)
