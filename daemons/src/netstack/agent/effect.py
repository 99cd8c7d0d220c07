"""What a change would open and deny: which pairs of pods and nodes, on which ports, and by which rules. Pure.

Both states are compiled as every node would compile them, and the tables are asked as the programs ask them
(files/bpf/lib/policy.h). A flow passes if the sender's egress and the receiver's ingress let it. Between pairs, names
that pods learn from DNS are left out: they open addresses outside the cluster alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from netstack.agent.desired import Memory, Place, accept_all, referred, who_may
from netstack.agent.identities import INGRESS_MANAGER, MANAGED_BY, NODES, PODS, LocalEndpoint
from netstack.agent.policy.accept import RawSpecs
from netstack.agent.policy.references import resolve
from netstack.agent.policy.rules import Name, Spec
from netstack.agent.register import INGRESS_NAME
from netstack.core.address import is_v4, pack, unpack
from netstack.core.protocol import PROTOCOLS
from netstack.core.ref import Ref
from netstack.kernel import layout
from netstack.source.models import EndpointSlice, Node, Pod
from netstack.source.snapshot import Snapshot

ALL_PORTS = range(1 << 16)
PRECEDENCE = {layout.ACTION_ALLOW: 1, layout.ACTION_REDIRECT_DNS: 2, layout.ACTION_DENY: 3}
INGRESS, EGRESS = layout.DIRECTION_INGRESS, layout.DIRECTION_EGRESS


@dataclass(frozen=True, slots=True, order=True)
class Party:
    """By one of its addresses: a pod or a node's ingress, whose endpoint has a number; a node, or who is not in the
    cluster, on no node (0)."""

    name: str
    address: bytes
    node: str
    endpoint: int = 0
    ingress: bool = False

    @property
    def number(self) -> int:
        """Of the endpoint that policies select, for a node too."""
        return self.endpoint or layout.HOST_ENDPOINT

    @property
    def place(self) -> Selected:
        return self.node, self.number


Selected = tuple[str, int]
"""An endpoint by its node and number."""
WORLD = tuple(Party("world", pack(address), "") for address in ("0.0.0.0", "::"))
"""What is outside the cluster and in no range but those that hold every address."""


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

    def __init__(
        self,
        snapshot: Snapshot,
        everyone: Collection[Party],
        alike: Place,
        good: Mapping[Ref, RawSpecs] | None = None,
        enforced: Collection[Ref] = (),
        memory: Memory | None = None,
    ) -> None:
        """`alike`: what all nodes' places have in common. `good`: the last good version of policies. `enforced`: those
        that deny even if they are on trial. `memory`: makes a state that is much like the one before it cheap."""
        memory = memory or Memory()
        self.accepted = accept_all(snapshot, good or {}, memory.readings)
        specs, self.lacking = resolve(self.accepted.specs, referred(snapshot))
        specs = tuple(replace(spec, on_trial=False) if spec.ref in enforced else spec for spec in specs)
        self.side = cache(self._side)
        self._nodes = {}
        for node in (node for node in snapshot.all(Node) if node.addresses):
            here = [party for party in everyone if party.endpoint and party.node == node.meta.name]
            self._nodes[node.meta.name] = _Node(snapshot, node, alike, specs, here, memory)

    def between(self, party: Party, direction: int, peer: Party, learned: frozenset[int] = frozenset()) -> Side:
        """What `party` has to say of flows to (EGRESS) or from `peer`. `learned`: the name-selectors that the peer's
        address satisfies for it."""
        sender, receiver = (peer, party) if direction == INGRESS else (party, peer)
        if not sender.endpoint and receiver.endpoint and sender.node == receiver.node:
            return Side(enforced=False)  # a node reaches its own pods
        its = self._nodes.get(party.node)
        if its is None or party.number not in its.enforce:
            return Side(enforced=False)  # the world, or a node that no policy selects
        return self.side(party.node, party.number, direction, its.identity(peer.address), learned)

    def selected(self, policy: Ref) -> set[Selected]:
        """Whom a policy selects."""
        return {
            (name, number)
            for name, node in self._nodes.items()
            for number, refs in node.selects.items()
            if policy in refs
        }

    def names(self, pod: Party) -> Mapping[Name, int]:
        """What a pod may reach by name, and the name-selectors for it."""
        its = self._nodes.get(pod.node)
        return its.names.get(pod.endpoint, {}) if its else {}

    def _side(self, node: str, endpoint: int, direction: int, identity: int, learned: frozenset[int]) -> Side:
        its = self._nodes[node]
        peers = (identity, layout.IDENTITY_ANY, *sorted(learned))
        tables = (its.rules.get((endpoint, peer, direction)) for peer in peers)
        return Side(bool(its.enforce[endpoint] & direction), tuple(tuple(rules) for rules in tables if rules))


class _Node:
    """One node's identities, who enforces, and its rules by (endpoint, peer, direction)."""

    def __init__(
        self,
        snapshot: Snapshot,
        node: Node,
        alike: Place,
        specs: tuple[Spec, ...],
        here: list[Party],
        memory: Memory,
    ) -> None:
        """`memory`: one for all nodes, because what they compile differs little."""
        place = replace(alike, node=node.meta.name, addresses=node.addresses, pod_cidrs=node.pod_cidrs)
        endpoints = [
            LocalEndpoint(pod.endpoint, pod.address, _ref(pod), 0, bytes(6), bytes(6), ingress=pod.ingress)
            for pod in here
        ]
        identities, made = who_may(snapshot, tuple(endpoints), place, specs, memory)
        self.identity = cache(identities.at)
        self.enforce, self.selects = made.enforce, made.selects
        self.names = {item.endpoint: item.names for item in made.dns}
        self.rules: dict[tuple[int, int, int], list[Rule]] = {}
        for raw, value in made.policy.entries.items():
            key, rule = layout.PolicyKey.unpack(raw), layout.PolicyRule.unpack(value)
            found = self.rules.setdefault((key.endpoint, key.peer, key.direction), [])
            found.append((key.bits, key.protocol, key.port, rule.action, str(made.rules[rule.rule])))


def _ref(pod: Party) -> Ref:
    namespace, _, name = pod.name.partition("/")
    return Ref("Pod", namespace, name)


def parties(snapshot: Snapshot, ingress_services: Collection[Ref] = ()) -> tuple[Party, ...]:
    """Every pod with a network of its own on a known node, every node's ingress that stands for one of these Services,
    and every node; once for each address."""
    nodes = [node for node in snapshot.all(Node) if node.addresses]
    known = {node.meta.name for node in nodes}
    pods = [
        (pod, address)
        for pod in sorted(snapshot.all(Pod), key=lambda pod: pod.meta.ref)
        if pod.node in known and not pod.host_network and not pod.ended
        for address in pod.addresses
    ]
    ingresses = {
        address: (f"{item.meta.namespace}/{INGRESS_NAME} of {entry.node}", entry.node)
        for item in snapshot.all(EndpointSlice)
        if item.meta.labels.get(MANAGED_BY) == INGRESS_MANAGER
        and Ref("Service", item.meta.namespace, item.service) in ingress_services
        for entry in item.endpoints
        if entry.node in known
        for address in entry.addresses
    }
    return (
        *(Party(pod.meta.ref.key, address, pod.node, number) for number, (pod, address) in enumerate(pods, 1)),
        *(
            Party(name, address, node, number, ingress=True)
            for number, (address, (name, node)) in enumerate(sorted(ingresses.items()), len(pods) + 1)
        ),
        *(Party(f"node {node.meta.name}", address, node.meta.name) for node in nodes for address in node.addresses),
    )


def effects(before: State, after: State, pairs: Iterable[tuple[Party, Party]]) -> Iterator[Effect]:
    """Everything that is open in one state and not in the other, pair by pair."""
    compared = cache(_compare)
    for source, destination in pairs:
        if is_v4(source.address) != is_v4(destination.address) or source.name == destination.name:
            continue
        for protocol, ports, opens, rules in compared(
            *(sides(state, source, destination) for state in (before, after))
        ):
            if protocol != ("ICMPv6" if is_v4(source.address) else "ICMP"):
                yield Effect(source, destination, protocol, ports, opens, rules)


def sides(state: State, source: Party, destination: Party, learned: frozenset[int] = frozenset()) -> Sides:
    """What the sender's egress says, and the receiver's ingress. `learned`: as in State.between, by the sender."""
    return state.between(source, EGRESS, destination, learned), state.between(destination, INGRESS, source)


Sides = tuple[Side, Side]
Difference = tuple[str, range, bool, tuple[str, ...]]


def _compare(before: Sides, after: Sides) -> tuple[Difference, ...]:
    """(protocol, ports, whether it opens, rules) of all that the two ways together let pass in one state alone."""
    found: list[Difference] = []
    for name, protocol in PROTOCOLS.items() if before != after else ():
        borders = sorted({0, 1 << 16}.union(*(side.borders(protocol) for side in (*before, *after))))
        for first, end in itertools.pairwise(borders):
            differs = judge(before, after, protocol, first)
            if differs is None:
                continue
            passes, rules = differs
            if found and found[-1][0] == name and found[-1][1].stop == first and found[-1][2:] == (passes, rules):
                found[-1] = (name, range(found[-1][1].start, end), passes, rules)
            else:
                found.append((name, range(first, end), passes, rules))
    return tuple(found)


def judge(before: Sides, after: Sides, protocol: int, port: int) -> tuple[bool, tuple[str, ...]] | None:
    """(whether it passes after the change, the rules that make the difference); None if there is none."""
    old, new = ([side.judge(protocol, port) for side in its] for its in (before, after))
    passed, passes = all(verdict for verdict, _ in old), all(verdict for verdict, _ in new)
    if passed == passes:
        return None
    return passes, tuple(dict.fromkeys(n[1] or o[1] for o, n in zip(old, new, strict=True) if o[0] != n[0]))


def of_change(before: State, after: State, everyone: Collection[Party], policy: Ref) -> Iterator[Effect]:
    """What another version of one policy, or none, opens and denies. The world is one of the ends."""
    touched = before.selected(policy) | after.selected(policy)
    for effect in effects(before, after, _pairs((*everyone, *WORLD), touched)):
        yield replace(effect, rules=named(effect.rules, policy))


def named(rules: Iterable[str], policy: Ref) -> tuple[str, ...]:
    """Where no rule decides it is the policy that makes, or no longer makes, everything else denied."""
    return tuple(rule or str(policy) for rule in rules)


def _pairs(everyone: Collection[Party], touched: Collection[Selected]) -> Iterator[tuple[Party, Party]]:
    """Each way between one of those and anyone else."""
    for one in (party for party in everyone if party.place in touched):
        for other in everyone:
            if other is not one:
                yield one, other
                if other.place not in touched:
                    yield other, one


def of_ranges(snapshot: Snapshot) -> Iterator[Effect]:
    """What it would open and deny if ranges in policies meant pods and nodes too (`policy_cidr_match_mode`)."""
    everyone, memory = parties(snapshot), Memory()
    without, within = (
        State(snapshot, everyone, Place("", (), (), ranges_match=frozenset(meant)), memory=memory)
        for meant in ((), (PODS, NODES))
    )
    yield from effects(without, within, itertools.permutations(everyone, 2))
