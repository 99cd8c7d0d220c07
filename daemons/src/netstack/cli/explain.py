"""`netstack explain`: what the programs decided about a flow, and the objects behind it. Pure: inquire.py asks.

A decision is traced to its rule (law 6). Where nothing allows a flow there is no rule to name, so every rule of the
policies that select the pod is listed with what keeps it from matching, and the rule that would allow the flow is
written out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from netstack.cli.frames import PROTOCOLS, Flow
from netstack.core.address import is_v4, unpack
from netstack.core.verdict import REASONS, Verdict
from netstack.kernel import layout
from netstack.observer.names import kind

NAMES_FROM = 3 << 30
"""Numbers of name-selectors (netstack.agent.policy.names)."""
DERIVED = "io.cilium.k8s."
"""Labels that follow from others and are of no use in a rule that is meant for people."""
ECHO = {"ICMP": 8, "ICMPv6": 128}
_NAMES = {number: name for name, number in PROTOCOLS.items()} | {132: "SCTP"}


@dataclass(frozen=True, slots=True)
class Party:
    """One end of the flow. `endpoint` 0: no pod of this node. `node`: who hosts it, "" outside the cluster."""

    name: str
    address: bytes
    identity: int
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoint: int = 0
    node: str = ""
    policies: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return (
            "world, in a range that a policy names"
            if self.identity >= layout.IDENTITY_PODS_END
            else kind(self.identity)
        )

    def __str__(self) -> str:
        at = unpack(self.address)
        return f"{'' if self.name == at else f'{self.name} '}{at} ({self.kind}, identity {self.identity})"


@dataclass(frozen=True, slots=True)
class Stage:
    """One program's word. `rule`: the object and field that decided, "" if none did."""

    where: str
    verdict: Verdict
    rule: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    source: Party
    destination: Party
    flow: Flow
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()
    suggestion: Mapping[str, Any] = field(default_factory=dict)
    """The part of a policy's spec that would allow what was denied for want of a rule."""

    @property
    def allowed(self) -> bool:
        return not any(stage.verdict.dropped for stage in self.stages)


def considered(
    entries: Iterable[tuple[layout.PolicyKey, layout.PolicyRule]],
    rules: Mapping[int, str],
    peers: Sequence[int],
    flow: Flow,
) -> tuple[str, ...]:
    """Why each rule among `entries` (one endpoint's, one direction's) does not allow a flow with one of `peers`."""
    ports: dict[int, set[str]] = defaultdict(set)
    numbers: dict[int, set[int]] = defaultdict(set)
    for key, rule in entries:
        if rule.action == layout.ACTION_DENY:
            continue
        numbers[rule.rule].add(key.peer)
        if key.peer in peers:
            ports[rule.rule].add(_port(key))
    lines = []
    for number in numbers:
        name = rules.get(number, f"rule {number}")
        if number in ports:
            lines.append(f"{name} is for this peer, but for {', '.join(sorted(ports[number]))}")
        elif all(peer >= NAMES_FROM for peer in numbers[number]):
            lines.append(f"{name} is for names; the pod has learned {unpack(flow.destination)} for none of them")
        else:
            lines.append(f"{name} is for other peers")
    return tuple(sorted(lines))


def _port(key: layout.PolicyKey) -> str:
    if key.bits == layout.POLICY_BITS_ANY:
        return "everything"
    protocol = _NAMES.get(key.protocol, str(key.protocol))
    free = layout.POLICY_BITS_PORT - key.bits
    if free == layout.POLICY_BITS_PORT - layout.POLICY_BITS_PROTO:
        return protocol
    return f"{protocol} {key.port}" if not free else f"{protocol} {key.port}-{key.port + (1 << free) - 1}"


def suggestion(direction: int, peer: Party, flow: Flow) -> dict[str, Any]:
    """The rule of a CiliumNetworkPolicy that lets exactly this flow pass."""
    side, section = ("from", "ingress") if direction == layout.DIRECTION_INGRESS else ("to", "egress")
    rule: dict[str, Any] = {}
    if peer.labels:
        own = {key: value for key, value in sorted(peer.labels.items()) if not key.startswith(DERIVED)}
        rule[f"{side}Endpoints"] = [{"matchLabels": own}]
    elif kind(peer.identity) not in ("world", "pod"):
        rule[f"{side}Entities"] = [kind(peer.identity)]
    else:
        rule[f"{side}CIDR"] = [f"{unpack(peer.address)}/{32 if is_v4(peer.address) else 128}"]
    if flow.protocol in ECHO:
        family = "IPv4" if flow.protocol == "ICMP" else "IPv6"
        rule["icmps"] = [{"fields": [{"family": family, "type": ECHO[flow.protocol]}]}]
    else:
        rule["toPorts"] = [{"ports": [{"port": str(flow.port), "protocol": flow.protocol}]}]
    return {section: [rule]}


def render(explanation: Explanation) -> str:
    """For people."""
    e = explanation
    what = e.flow.protocol if e.flow.protocol in ECHO else f"{e.flow.protocol} {e.flow.port}"
    lines = [f"{e.source}  ->  {e.destination}, {what}"]
    for stage in e.stages:
        by = f" by {stage.rule}" if stage.rule else ""
        lines.append(f"  {stage.where}: {stage.verdict.name}{by} ({REASONS[stage.verdict]})")
        lines += [f"      {note}" for note in stage.notes]
    lines += [f"  {note}" for note in e.notes]
    lines.append("allowed" if e.allowed else "denied")
    if e.suggestion:
        lines.append("this rule would allow it:")
        lines += [f"  {line}" for line in yaml.safe_dump(dict(e.suggestion), sort_keys=False).splitlines()]
    return "\n".join(lines) + "\n"


def report(explanation: Explanation) -> dict[str, Any]:
    """For programs."""

    def party(one: Party) -> dict[str, Any]:
        return asdict(one) | {"address": unpack(one.address), "kind": one.kind}

    e = explanation
    return {
        "source": party(e.source),
        "destination": party(e.destination),
        "port": e.flow.port,
        "protocol": e.flow.protocol,
        "stages": [asdict(stage) | {"verdict": stage.verdict.name} for stage in e.stages],
        "notes": list(e.notes),
        "allowed": e.allowed,
        "suggestion": dict(e.suggestion),
    }
