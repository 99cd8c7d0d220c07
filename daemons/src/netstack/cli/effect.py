"""`netstack effect`: what a policy would change, for people and programs. Pure; proposal.py reads the node.

Pairs of pods and nodes come from the compiled tables (netstack.agent.effect). Flows are those that the observer has
seen: each is judged by the tables before and after the change, with the DNS names that this pod has learned for the
address. Flows that were seen from both of their ends are one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from netstack.agent.effect import (
    ALL_PORTS,
    EGRESS,
    INGRESS,
    Effect,
    Party,
    State,
    judge,
    named,
    sides,
)
from netstack.cli.explain import ECHO
from netstack.core.address import pack
from netstack.core.errors import BadObject
from netstack.core.protocol import PROTOCOLS
from netstack.core.ref import Ref
from netstack.core.verdict import Verdict
from netstack.dns.names import Match, Matcher, Rule

SHOWN = 6
"""Names that a line lists, before it counts the others."""
JUDGED = (Verdict.POLICY_DENIED, Verdict.DEFAULT_DENY)
"""Of the drops, those that policies are the reason for."""
WAYS = {"egress": EGRESS, "ingress": INGRESS}


@dataclass(frozen=True, slots=True, order=True)
class Pairs:
    """Every source with every destination but itself."""

    opens: bool
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    what: str
    """Protocols and ports."""
    rules: tuple[str, ...]

    def __str__(self) -> str:
        ends = f"{_listed(self.sources)} -> {_listed(self.destinations)}"
        return f"{'opens' if self.opens else 'denies'} {ends}: {self.what}, by {' and '.join(self.rules)}"


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """A flow that was seen lately, and would become another verdict's."""

    opens: bool
    source: str
    destination: str
    protocol: str
    port: int
    rules: tuple[str, ...]
    times: int = 1
    unless: tuple[str, ...] = ()
    """It is denied only if the pod does not learn the address by one of these names."""

    def __str__(self) -> str:
        what = self.protocol if self.protocol.startswith("ICMP") else f"{self.protocol} {self.port}"
        text = (
            f"{'opens' if self.opens else 'denies'} {self.source} -> {self.destination} {what} "
            f"(seen {self.times}x), by {' and '.join(self.rules)}"
        )
        return f"{text}, unless the pod asks for it as {_listed(self.unless, 'or')}" if self.unless else text


@dataclass(frozen=True, slots=True)
class Told:
    """What would happen. With `problems` the policy is refused as a whole, and nothing else is known."""

    policy: Ref
    problems: tuple[BadObject, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be looked at, or what the policy names and is not there."""
    digest: str = ""
    """As the agent reports it once this is in force; "" if it is taken away."""
    on_trial: bool = False
    selects: tuple[str, ...] = ()
    pairs: tuple[Pairs, ...] = ()
    flows: tuple[Flow, ...] = ()
    trial_pairs: tuple[Pairs, ...] = ()
    trial_flows: tuple[Flow, ...] = ()
    """The same of what a policy on trial would report as denied."""
    place: Mapping[str, Any] = field(default_factory=dict)
    """Where the object is kept, and how it is now and would be (proposal.py)."""


def grouped(effects: Iterable[Effect]) -> tuple[Pairs, ...]:
    """Those that open or deny the same by the same rules, together."""
    found: dict[tuple[str, str, bool, tuple[str, ...]], list[Effect]] = {}
    for one in effects:
        found.setdefault((one.source.name, one.destination.name, one.opens, one.rules), []).append(one)
    reached: dict[tuple[bool, str, tuple[str, ...]], dict[str, set[str]]] = {}
    for (source, destination, opens, rules), some in found.items():
        reached.setdefault((opens, _what(some), rules), {}).setdefault(source, set()).add(destination)
    groups = []
    for (opens, what, rules), destinations in reached.items():
        for ends, sources in _alike(destinations).items():
            groups.append(Pairs(opens, tuple(sorted(sources)), tuple(sorted(ends)), what, rules))
    return tuple(sorted(groups))


def _alike(reached: Mapping[str, set[str]]) -> dict[frozenset[str], list[str]]:
    """Destinations -> the sources that reach just these. No source reaches itself, so pods that all reach one another
    are alike."""
    own = {source: frozenset({source, *ends}) for source, ends in reached.items()}
    counts = Counter(frozenset(ends) for ends in reached.values()) + Counter(own.values())
    found: dict[frozenset[str], list[str]] = {}
    for source, ends in reached.items():
        with_itself = counts[own[source]] > counts[frozenset(ends)]
        found.setdefault(own[source] if with_itself else frozenset(ends), []).append(source)
    return found


def _what(effects: Iterable[Effect]) -> str:
    ports: dict[str, list[range]] = {}
    for one in effects:
        ports.setdefault(one.protocol, []).append(one.ports)
    if len(ports.keys() - {"ICMPv6"}) == len(PROTOCOLS) - 1 and all(its[0] == ALL_PORTS for its in ports.values()):
        return "everything"
    return ", ".join(
        f"{protocol} {'/'.join(map(_ports, its))}" if its[0] != ALL_PORTS else protocol
        for protocol, its in sorted(ports.items())
    )


def _ports(ports: range) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


def _listed(names: Collection[str], last: str = "") -> str:
    shown = list(names)[:SHOWN]
    if len(names) > SHOWN:
        shown.append(f"{len(names) - SHOWN} more")
    return f" {last} ".join(shown) if last else ", ".join(shown)


def flows(
    seen: Iterable[Mapping[str, Any]], before: State, after: State, everyone: Iterable[Party], policy: Ref
) -> tuple[Flow, ...]:
    """`seen`: as netstack.observer.flows has them."""
    parties = {party.address: party for party in everyone}
    counts: Counter[tuple[Any, ...]] = Counter()
    for flow in seen:
        verdict = Verdict.of(flow["verdict"])
        if flow["direction"] in WAYS and flow["protocol"] in PROTOCOLS and (not verdict.dropped or verdict in JUDGED):
            ends = (flow["source"]["address"], flow["destination"]["address"])
            names = tuple(flow["learned"]) if flow["direction"] == "egress" else ()
            port = ECHO.get(flow["protocol"], flow["destination"]["port"])  # what the programs ask policies for
            key = (*ends, flow["protocol"], port, flow["direction"], flow["entity"], names)
            counts[key] += 1 + flow["repeats"]
    judging = _Judging(before, after, parties, policy)
    found: dict[tuple[Any, ...], Flow] = {}
    for key, times in counts.items():
        one = judging.of(*key, times=times)
        if one is not None:
            place = (one.source, one.destination, one.protocol, one.port)
            found[place] = max(one, found.get(place, one), key=lambda flow: flow.times)
    return tuple(sorted(found.values()))


class _Judging:
    def __init__(self, before: State, after: State, parties: Mapping[bytes, Party], policy: Ref) -> None:
        self._states = (before, after)
        self._parties, self._policy = parties, policy
        self._hosts = {party.node: party for party in parties.values() if not party.endpoint}
        self._learned = cache(self._learns)

    def of(
        self,
        source: str,
        destination: str,
        protocol: str,
        port: int,
        direction: str,
        entity: str,
        names: tuple[str, ...],
        *,
        times: int,
    ) -> Flow | None:
        """None if the change makes no difference, or whom the event is of is not known."""
        out = direction == "egress"
        own = self._parties.get(pack(source if out else destination))
        if own is None:
            return None
        peer = self._peer(destination if out else source, entity, own)
        ends = (own, peer) if out else (peer, own)
        by_name = out and not peer.endpoint
        was, will = (
            sides(state, *ends, self._learned(state, own, names) if by_name else frozenset()) for state in self._states
        )
        differs = judge(was, will, PROTOCOLS[protocol], port)
        if differs is None:
            return None
        unless = self._names_that_open(ends, protocol, port) if by_name and not names and not differs[0] else ()
        shown = f"{','.join(names)} {destination}" if names else ends[1].name
        return Flow(differs[0], ends[0].name, shown, protocol, port, named(differs[1], self._policy), times, unless)

    def _peer(self, address: str, entity: str, own: Party) -> Party:
        """Who bears an address that no object does: the node under another address of its, or somebody outside."""
        known = self._parties.get(pack(address))
        if known is None and entity == "host":
            known = self._hosts.get(own.node)
        return known or Party(address, pack(address), "")

    def _learns(self, state: State, pod: Party, names: tuple[str, ...]) -> frozenset[int]:
        """The name-selectors that an address of these names satisfies."""
        rules = (Rule(number, Match(name.field), name.text) for name, number in state.names(pod).items())
        matcher = Matcher(rules)
        labels = (tuple(name.encode().split(b".")) for name in names)
        return frozenset().union(*(matcher(name) for name in labels))

    def _names_that_open(self, ends: tuple[Party, Party], protocol: str, port: int) -> tuple[str, ...]:
        after = self._states[1]
        return tuple(
            name.text
            for name, number in sorted(after.names(ends[0]).items())
            if all(side.judge(PROTOCOLS[protocol], port)[0] for side in sides(after, *ends, frozenset({number})))
        )


def render(told: Told) -> str:
    """For people."""
    if told.problems:
        return "".join(f"{problem}\n" for problem in told.problems) + "the whole policy is refused\n"
    return "\n".join([*lines(told), *(f"note: {note}" for note in told.notes)]) + "\n"


def lines(told: Told) -> list[str]:
    """The effect, without what is known about the policy itself."""
    said = [*_section("flows seen lately on this node", told.flows), *_section("pods and nodes", told.pairs)]
    if told.on_trial:
        trial = [
            *_section("flows seen lately on this node", told.trial_flows),
            *_section("pods and nodes", told.trial_pairs),
        ]
        said += ["on trial: denies and opens nothing; enforced, it would do this", *(f"  {line}" for line in trial)]
    return said or ["no effect on any pod that is known"]


def _section(title: str, items: Collection[Any]) -> list[str]:
    return [f"{title}:", *(f"  {item}" for item in items)] if items else []


def report(told: Told) -> dict[str, Any]:
    """For programs."""
    return {
        "policy": str(told.policy),
        "problems": [{"object": str(p.ref), "field": p.field, "reason": p.reason} for p in told.problems],
        "notes": list(told.notes),
        "digest": told.digest,
        "on_trial": told.on_trial,
        "selects": list(told.selects),
        "pairs": [asdict(item) for item in told.pairs],
        "flows": [asdict(item) for item in told.flows],
        "trial_pairs": [asdict(item) for item in told.trial_pairs],
        "trial_flows": [asdict(item) for item in told.trial_flows],
        "lines": [] if told.problems else lines(told),
        **told.place,
    }
