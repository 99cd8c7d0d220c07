"""networking.k8s.io/v1 NetworkPolicy -> rules (Kubernetes API, NetworkPolicySpec).

Differences from Cilium's kinds: a rule's peers may be of several sorts, an empty or missing list of peers is anyone, a
port without protocol is TCP, and `policyTypes` decides which directions deny by default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netstack.agent.identities import NAMESPACE, NAMESPACE_LABELS
from netstack.agent.policy.cilium import read_block
from netstack.agent.policy.ports import read_port
from netstack.agent.policy.rules import Action, Block, Direction, Peers, Rule, Spec
from netstack.core.ref import Ref, RuleRef
from netstack.source.fields import Fields
from netstack.source.selectors import LabelSelector, Requirement

TYPES = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}


def read_kubernetes(ref: Ref, data: Mapping[str, Any], path: str) -> Spec:
    """One spec. BadObject names the field that makes the policy unusable."""
    spec = Fields(ref, data, path)
    subject = read_subject(spec)
    types = spec.strings("policyTypes")
    for index, name in enumerate(types):
        if name not in TYPES:
            spec.fail(f"policyTypes[{index}]", f"must be Ingress or Egress, not {name!r}")
    directions = frozenset(TYPES[name] for name in types) or read_directions(data)
    rules = [
        _rule(ref, item, direction, peers)
        for section, direction, peers in (("ingress", Direction.INGRESS, "from"), ("egress", Direction.EGRESS, "to"))
        for item in spec.children(section)
        if direction in directions
    ]
    spec.close()
    return Spec(ref, subject, directions, tuple(rules))


def read_subject(spec: Fields) -> LabelSelector:
    """podSelector, within the policy's namespace; the API defaults a missing one to every pod."""
    selector = LabelSelector.parse(spec.child("podSelector"))
    return LabelSelector((*selector.requirements, Requirement(NAMESPACE, "In", (spec.ref.namespace,))))


def read_directions(data: Mapping[str, Any]) -> frozenset[Direction]:
    """What policyTypes defaults to: always Ingress, Egress if there are egress rules."""
    types = data.get("policyTypes")
    named = frozenset(TYPES[name] for name in TYPES if isinstance(types, list) and name in types)
    return named or frozenset(Direction if data.get("egress") else (Direction.INGRESS,))


def _rule(ref: Ref, fields: Fields, direction: Direction, name: str) -> Rule:
    ports = tuple(read_port(item, "TCP", zero=False) for item in fields.children("ports"))
    selectors: list[LabelSelector] = []
    blocks: list[Block] = []
    for peer in fields.children(name):
        if "ipBlock" in peer:
            if "podSelector" in peer or "namespaceSelector" in peer:
                peer.fail("ipBlock", "cannot be combined with a selector in one peer")
            blocks.append(read_block(peer.child("ipBlock")))
        elif "podSelector" in peer or "namespaceSelector" in peer:
            selectors.append(_peer(peer))
        else:
            peer.fail("podSelector", "a peer needs podSelector, namespaceSelector or ipBlock")
        peer.close()
    fields.close()
    anyone = not selectors and not blocks
    peers = None if anyone else Peers(selectors=tuple(selectors), blocks=tuple(blocks))
    return Rule(RuleRef(ref, fields.path), direction, Action.ALLOW, peers, ports)


def _peer(peer: Fields) -> LabelSelector:
    """Pods by their labels, in the policy's namespace or in those that namespaceSelector selects."""
    pods = LabelSelector.parse(peer.child("podSelector")).requirements
    if "namespaceSelector" not in peer:
        return LabelSelector((*pods, Requirement(NAMESPACE, "In", (peer.ref.namespace,))))
    namespaces = tuple(
        Requirement(NAMESPACE_LABELS + item.key, item.operator, item.values)
        for item in LabelSelector.parse(peer.child("namespaceSelector")).requirements
    )
    return LabelSelector((*pods, *namespaces, Requirement(NAMESPACE, "Exists")))
