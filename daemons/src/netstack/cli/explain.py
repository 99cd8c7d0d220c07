"""`netstack explain`: what the programs decided about a flow, and the objects behind it. Pure: inquire.py asks.

A decision is traced to its rule (law 6). Where nothing allows a flow there is no rule to name, so every rule of the
policies that select the pod is listed with what keeps it from matching, and a policy that would allow the flow is
written out, to be applied as it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from netstack.agent.identities import NAMESPACE
from netstack.agent.policy.names import BASE as NAMES_FROM
from netstack.cli.frames import Flow
from netstack.core.address import is_v4, unpack
from netstack.core.protocol import PROTOCOL_NAMES, PROTOCOLS
from netstack.core.verdict import Verdict
from netstack.kernel import layout
from netstack.observer.names import kind

DERIVED = "io.cilium.k8s."
"""Labels that follow from others and are of no use in a rule that is meant for people."""
PASSING = ("pod-template-hash", "controller-revision-hash", "pod-template-generation")
"""Labels that change with every version of a Deployment, DaemonSet or StatefulSet."""
ECHO = {"ICMP": 8, "ICMPv6": 128}


@dataclass(frozen=True, slots=True)
class Party:
    """One end of the flow. `endpoint` 0: no pod of this node. `node`: the address of who hosts it, "" outside the
    cluster. `pod`: `namespace/name`, if it is one's address. `service`: the address is one of a Service."""

    name: str
    address: bytes
    identity: int
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoint: int = 0
    node: str = ""
    policies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By direction: those that select it and deny what no rule allows."""
    pod: str = ""
    service: bool = False

    @property
    def kind(self) -> str:
        if self.service:
            return "service"
        return (
            "world, in a range that a policy names"
            if self.identity >= layout.IDENTITY_PODS_END
            else kind(self.identity)
        )

    @property
    def own_labels(self) -> dict[str, str]:
        """Those by which a policy that people write names it; its namespace is one of them."""
        return {
            key: value
            for key, value in sorted(self.labels.items())
            if not key.startswith(DERIVED) and key not in PASSING
        }

    def __str__(self) -> str:
        at = unpack(self.address)
        kind = self.kind if self.service else f"{self.kind}, identity {self.identity}"
        return f"{'' if self.name == at else f'{self.name} '}{at} ({kind})"


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
    """A policy that would allow what was denied for want of a rule."""
    asked: str = ""
    """The DNS name for which this flow asks; "" if it is the flow that was meant."""
    beyond: str = ""
    """Who else has a say, and how to ask there; "" if this is all."""

    @property
    def allowed(self) -> bool:
        return not any(stage.verdict.dropped for stage in self.stages)


def considered(
    entries: Iterable[tuple[layout.PolicyKey, layout.PolicyRule]],
    rules: Mapping[int, str],
    peers: Sequence[int],
    flow: Flow,
) -> tuple[str, ...]:
    """Why each rule among `entries` (one endpoint's, one direction's) does not allow a flow with one of `peers`; or
    that it is for it by now, where the flow is older than the entries."""
    ports: dict[int, set[str]] = defaultdict(set)
    by_now: set[int] = set()
    numbers: dict[int, set[int]] = defaultdict(set)
    for key, rule in entries:
        if rule.action == layout.ACTION_DENY:
            continue
        numbers[rule.rule].add(key.peer)
        if key.peer in peers:
            ports[rule.rule].add(_port(key))
            if _fits(key, flow):
                by_now.add(rule.rule)
    lines = []
    for number in numbers:
        name = rules.get(number, f"rule {number}")
        if number in by_now:
            lines.append(f"{name} is for this flow by now")
        elif number in ports:
            lines.append(f"{name} is for this peer, but for {', '.join(sorted(ports[number]))}")
        elif any(peer >= NAMES_FROM for peer in numbers[number]):  # the others are DNS servers, to learn them
            lines.append(f"{name} is for names; the pod has learned {unpack(flow.destination)} for none of them lately")
        else:
            lines.append(f"{name} is for other peers")
    return tuple(sorted(lines))


def _fits(key: layout.PolicyKey, flow: Flow) -> bool:
    free = layout.POLICY_BITS_PORT - key.bits
    port = ECHO.get(flow.protocol, flow.port)
    same = key.protocol == PROTOCOLS[flow.protocol] and key.port >> free == port >> free
    return key.bits == layout.POLICY_BITS_ANY or same


def _port(key: layout.PolicyKey) -> str:
    if key.bits == layout.POLICY_BITS_ANY:
        return "everything"
    protocol = PROTOCOL_NAMES.get(key.protocol, str(key.protocol))
    free = layout.POLICY_BITS_PORT - key.bits
    if free == layout.POLICY_BITS_PORT - layout.POLICY_BITS_PROTO:
        return protocol
    return f"{protocol} {key.port}" if not free else f"{protocol} {key.port}-{key.port + (1 << free) - 1}"


def suggestion(direction: int, subject: Party, peer: Party, flow: Flow, name: str = "") -> dict[str, Any]:
    """The CiliumNetworkPolicy that lets exactly this flow pass, and denies nothing that is not denied already.

    `name`: by which the pod means `peer`; it may then look it up, too. Nothing while the agent does not say who is who.
    """
    if not subject.pod:
        return {}
    side, section = ("from", "ingress") if direction == layout.DIRECTION_INGRESS else ("to", "egress")
    namespace, pod = subject.pod.split("/")
    own = subject.own_labels
    own.pop(NAMESPACE, None)
    what = [flow.protocol] if flow.protocol in ECHO else [flow.protocol, str(flow.port)]
    title = "-".join((pod, side, name or peer.pod or peer.name.rpartition(" ")[2], *what))
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": re.sub(r"[^a-z0-9.]+", "-", title.lower()), "namespace": namespace},
        "spec": {
            "endpointSelector": {"matchLabels": own},
            "enableDefaultDeny": {section: False},
            section: [_rule(side, peer, flow, name)],
        },
    }


def _rule(side: str, peer: Party, flow: Flow, name: str) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if name:
        rule["toFQDNs"] = [{"matchName": name}]
    elif peer.labels:
        rule[f"{side}Endpoints"] = [{"matchLabels": peer.own_labels}]
    elif kind(peer.identity) not in ("world", "pod"):
        rule[f"{side}Entities"] = [kind(peer.identity)]
    else:
        rule[f"{side}CIDR"] = [f"{unpack(peer.address)}/{32 if is_v4(peer.address) else 128}"]
    if flow.protocol in ECHO:
        family = "IPv4" if flow.protocol == "ICMP" else "IPv6"
        rule["icmps"] = [{"fields": [{"family": family, "type": ECHO[flow.protocol]}]}]
    else:
        rule["toPorts"] = [{"ports": [{"port": str(flow.port), "protocol": flow.protocol}]}]
    return rule


def render(explanation: Explanation) -> str:
    """For people."""
    e = explanation
    what = e.flow.protocol if e.flow.protocol in ECHO else f"{e.flow.protocol} {e.flow.port}"
    lines = [f"{e.source}  ->  {e.destination}, {what}{f', to ask for {e.asked}' if e.asked else ''}"]
    for stage in e.stages:
        by = f" by {stage.rule}" if stage.rule else ""
        lines.append(f"  {stage.where}: {stage.verdict.name}{by} ({stage.verdict.reason})")
        lines += [f"      {note}" for note in stage.notes]
    lines += [f"  {note}" for note in (*e.notes, *filter(None, [e.beyond]))]
    lines.append("denied" if not e.allowed else "allowed, as far as this node knows" if e.beyond else "allowed")
    if e.suggestion:
        lines.append("this policy would allow it:")
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
        "asked": e.asked,
        "stages": [asdict(stage) | {"verdict": stage.verdict.name} for stage in e.stages],
        "notes": list(e.notes),
        "beyond": e.beyond,
        "allowed": e.allowed,
        "suggestion": dict(e.suggestion),
    }
