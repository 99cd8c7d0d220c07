"""What a change would open and deny: which pairs of pods and nodes, on which ports, and by which rules. Pure.

Both states are compiled as every node would compile them, and the tables are asked as the programs ask them
(files/bpf/lib/policy.h). A flow passes if the sender's egress and the receiver's ingress let it. Names that pods learn
from DNS are left out: they open addresses outside the cluster alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from netstack.agent.desired import Place, who_may
from netstack.agent.identities import NODES, PODS, LocalEndpoint
from netstack.agent.policy.accept import accept, on_trial
from netstack.agent.policy.references import Referred, resolve
from netstack.agent.policy.rules import ICMP, ICMPV6, SCTP, TCP, UDP, Spec
from netstack.agent.policy.tables import Compiler
from netstack.core.address import is_v4, unpack
from netstack.core.ref import Ref
from netstack.kernel import layout
from netstack.source.models import CIDRGroup, EndpointSlice, Namespace, Node, Pod, Policy, Service
from netstack.source.snapshot import Snapshot

PROTOCOLS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP, "ICMP": ICMP, "ICMPv6": ICMPV6}
ALL_PORTS = range(1 << 16)
PRECEDENCE = {layout.ACTION_ALLOW: 1, layout.ACTION_REDIRECT_DNS: 2, layout.ACTION_DENY: 3}
INGRESS, EGRESS = layout.DIRECTION_INGRESS, layout.DIRECTION_EGRESS


@dataclass(frozen=True, slots=True, order=True)
class Party:
    """A pod (its endpoint has a number) or a node (0), by one of its addresses."""

    name: str
    address: bytes
    node: str
    endpoint: int = 0


@dataclass(frozen=True, slots=True)
class Effect:
    """Flows that pass after the change and not before it (`opens`), or before and not after."""

    source: Party
    destination: Party
    protocol: str
    ports: range
    opens: bool
    rules: tuple[str, ...]
    """What makes the difference: an object and the field in it."""

    @property
    def meant(self) -> str:
        """Whom a range would have to mean for this to happen: of identities.RANGES_MATCH."""
        return PODS if self.source.endpoint and self.destination.endpoint else NODES

    def __str__(self) -> str:
        ports = "" if self.ports == ALL_PORTS else f" {self.ports[0]}"
        if ports and len(self.ports) > 1:
            ports += f"-{self.ports[-1]}"
        return (
            f"{'opens' if self.opens else 'denies'} {self.source.name} -> {self.destination.name} "
            f"({unpack(self.destination.address)}) {self.protocol}{ports}, by {' and '.join(self.rules)}"
        )


Rule = tuple[int, int, int, int, str]
"""(bits, protocol, port, action, object and field): an entry of the policy table, without its endpoint and peer."""


@dataclass(frozen=True, slots=True)
class Side:
    """What one endpoint has in one direction for one peer: the peer's own rules, and those for anyone."""

    enforced: bool
    tables: tuple[tuple[Rule, ...], ...] = ()

    def judge(self, protocol: int, port: int) -> tuple[bool, str]:
        """Whether a flow may start, and the rule that says so ("" = none)."""
        best = (0, "")
        for rules in self.tables:
            fitting = [rule for rule in rules if _fits(rule, protocol, port)]
            if fitting:
                *_, action, name = max(fitting)
                best = max(best, (PRECEDENCE[action], name))
        return (best[0] < PRECEDENCE[layout.ACTION_DENY] if best[0] else not self.enforced), best[1]

    def borders(self, protocol: int) -> set[int]:
        """The ports from which on the verdict may be another."""
        found = set()
        for bits, its, port, _, _ in itertools.chain(*self.tables):
            if its == protocol and bits > layout.POLICY_BITS_PROTO:
                found |= {port, port + (1 << layout.POLICY_BITS_PORT - bits)}
        return found


def _fits(rule: Rule, protocol: int, port: int) -> bool:
    shift = layout.POLICY_BITS_PORT - rule[0]
    return rule[0] == layout.POLICY_BITS_ANY or (rule[1] == protocol and rule[2] >> shift == port >> shift)


class State:
    """The tables of all nodes."""

    def __init__(self, snapshot: Snapshot, everyone: Iterable[Party], ranges_match: frozenset[str]) -> None:
        trials = {item.meta.name for item in snapshot.all(Namespace) if on_trial(item.meta)}
        accepted = accept(snapshot.all(Policy), {}, trials=trials)
        objects = Referred(snapshot.all(Service), snapshot.all(EndpointSlice), snapshot.all(CIDRGroup))
        specs, _ = resolve(accepted.specs, objects)
        self.side = cache(self._side)
        self._nodes = {}
        for node in (node for node in snapshot.all(Node) if node.addresses):
            here = [party for party in everyone if party.endpoint and party.node == node.meta.name]
            self._nodes[node.meta.name] = _Node(snapshot, node, ranges_match, specs, here)

    def between(self, party: Party, direction: int, peer: Party) -> Side:
        """What `party` has to say of flows to (EGRESS) or from `peer`."""
        sender, receiver = (peer, party) if direction == INGRESS else (party, peer)
        its = self._nodes[party.node]
        if not sender.endpoint and receiver.endpoint and sender.node == receiver.node:
            return Side(enforced=False)  # a node reaches its own pods
        endpoint = party.endpoint or layout.HOST_ENDPOINT
        if endpoint not in its.enforce:
            return Side(enforced=False)  # a node that no policy selects
        return self.side(party.node, endpoint, direction, its.identities.of_address[peer.address])

    def _side(self, node: str, endpoint: int, direction: int, identity: int) -> Side:
        its = self._nodes[node]
        tables = (its.rules.get((endpoint, peer, direction)) for peer in (identity, layout.IDENTITY_ANY))
        return Side(bool(its.enforce[endpoint] & direction), tuple(tuple(rules) for rules in tables if rules))


class _Node:
    """One node's identities, who enforces, and its rules by (endpoint, peer, direction)."""

    def __init__(
        self, snapshot: Snapshot, node: Node, ranges_match: frozenset[str], specs: tuple[Spec, ...], here: list[Party]
    ) -> None:
        place = Place(node.meta.name, node.addresses, node.pod_cidrs, ranges_match=ranges_match)
        endpoints = [
            LocalEndpoint(pod.endpoint, pod.address, _ref(pod), 0, bytes(6), bytes(6)) for pod in here if pod.endpoint
        ]
        self.identities, made = who_may(snapshot, tuple(endpoints), place, specs, Compiler())
        self.enforce = made.enforce
        self.rules: dict[tuple[int, int, int], list[Rule]] = {}
        for raw, value in made.policy.entries.items():
            key, rule = layout.PolicyKey.unpack(raw), layout.PolicyRule.unpack(value)
            found = self.rules.setdefault((key.endpoint, key.peer, key.direction), [])
            found.append((key.bits, key.protocol, key.port, rule.action, str(made.rules[rule.rule])))


def _ref(pod: Party) -> Ref:
    namespace, _, name = pod.name.partition("/")
    return Ref("Pod", namespace, name)


def parties(snapshot: Snapshot) -> tuple[Party, ...]:
    """Every pod with a network of its own on a known node, and every node, once for each address."""
    nodes = [node for node in snapshot.all(Node) if node.addresses]
    known = {node.meta.name for node in nodes}
    pods = [
        (pod, address)
        for pod in sorted(snapshot.all(Pod), key=lambda pod: pod.meta.ref)
        if pod.node in known and not pod.host_network and pod.phase not in ("Succeeded", "Failed")
        for address in pod.addresses
    ]
    return (
        *(Party(pod.meta.ref.key, address, pod.node, number) for number, (pod, address) in enumerate(pods, 1)),
        *(Party(f"node {node.meta.name}", address, node.meta.name) for node in nodes for address in node.addresses),
    )


def effects(before: State, after: State, everyone: Iterable[Party]) -> Iterator[Effect]:
    """Everything that is open in one state and not in the other, pair by pair."""
    compared = cache(_compare)
    for source, destination in itertools.permutations(everyone, 2):
        if is_v4(source.address) != is_v4(destination.address) or source.name == destination.name:
            continue
        was, will = (
            (state.between(source, EGRESS, destination), state.between(destination, INGRESS, source))
            for state in (before, after)
        )
        for protocol, ports, opens, rules in compared(was, will):
            if protocol != ("ICMPv6" if is_v4(source.address) else "ICMP"):
                yield Effect(source, destination, protocol, ports, opens, rules)


Sides = tuple[Side, Side]
Difference = tuple[str, range, bool, tuple[str, ...]]


def _compare(before: Sides, after: Sides) -> tuple[Difference, ...]:
    """(protocol, ports, whether it opens, rules) of all that the two ways together let pass in one state alone."""
    found: list[Difference] = []
    for name, protocol in PROTOCOLS.items() if before != after else ():
        borders = sorted({0, 1 << 16}.union(*(side.borders(protocol) for side in (*before, *after))))
        for first, end in itertools.pairwise(borders):
            old, new = ([side.judge(protocol, first) for side in sides] for sides in (before, after))
            passed, passes = all(verdict for verdict, _ in old), all(verdict for verdict, _ in new)
            if passed == passes:
                continue
            rules = tuple(dict.fromkeys(n[1] or o[1] for o, n in zip(old, new, strict=True) if o[0] != n[0]))
            if found and found[-1][0] == name and found[-1][1].stop == first and found[-1][2:] == (passes, rules):
                found[-1] = (name, range(found[-1][1].start, end), passes, rules)
            else:
                found.append((name, range(first, end), passes, rules))
    return tuple(found)


def of_ranges(snapshot: Snapshot) -> Iterator[Effect]:
    """What it would open and deny if ranges in policies meant pods and nodes too (`policy_cidr_match_mode`)."""
    everyone = parties(snapshot)
    without, within = (State(snapshot, everyone, frozenset(meant)) for meant in ((), (PODS, NODES)))
    yield from effects(without, within, everyone)
