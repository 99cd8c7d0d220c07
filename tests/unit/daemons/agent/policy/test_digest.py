"""The same meaning, the same digest; another meaning, another."""

from __future__ import annotations

import itertools
from typing import Any

import yaml

from netstack.agent.policy.accept import accept
from netstack.agent.policy.digest import LENGTH, digest
from netstack.source.models import Policy
from netstack.source.parse import parse

METADATA = {"name": "p", "namespace": "one"}
SPEC: dict[str, Any] = {
    "podSelector": {"matchLabels": {"app": "a", "tier": "x"}},
    "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80}]}],
}


def of(spec: dict[str, Any], metadata: dict[str, Any] | None = None, kind: str = "NetworkPolicy") -> str:
    group = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    policy = parse({"apiVersion": group, "kind": kind, "metadata": METADATA | (metadata or {}), "spec": spec})
    assert isinstance(policy, Policy)
    accepted = accept([policy], {})
    assert not accepted.refused
    return digest(accepted.specs)


def test_what_the_api_server_fills_in_changes_nothing() -> None:
    written = yaml.safe_load(yaml.safe_dump(SPEC))
    written["policyTypes"] = ["Ingress"]
    written["ingress"][0]["ports"][0]["protocol"] = "TCP"
    written["podSelector"]["matchLabels"] = {"tier": "x", "app": "a"}
    assert of(written, {"labels": {"any": "thing"}}) == of(SPEC)
    assert len(of(SPEC)) == LENGTH


def test_every_other_meaning_has_another() -> None:
    wide = SPEC | {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}]}
    world = {"endpointSelector": {}, "egress": [{"toEntities": ["world", "cluster"]}]}
    names = {"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "x.io"}]}]}
    found = [
        of(SPEC),
        of(SPEC, {"name": "q"}),
        of(SPEC, {"annotations": {"netstack.kubelab.io/audit": "true"}}),
        of(wide),
        of({**SPEC, "policyTypes": ["Ingress", "Egress"]}),
        of(world, kind="CiliumNetworkPolicy"),
        of(names, kind="CiliumNetworkPolicy"),
    ]
    assert not any(a == b for a, b in itertools.combinations(found, 2))
