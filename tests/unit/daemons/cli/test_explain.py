from __future__ import annotations

import json

import pytest
import yaml

from netstack.cli.explain import Explanation, Party, Stage, considered, render, report, suggestion
from netstack.cli.frames import Flow
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l

POD = Party(
    "pod one/a", pack("10.244.1.3"), (1 << 30) + 5, {"app": "a", "io.kubernetes.pod.namespace": "one"}, endpoint=4
)
WORLD = Party("10.0.0.7", pack("10.0.0.7"), l.IDENTITY_WORLD)
FLOW = Flow(POD.address, WORLD.address, 443, "TCP")
RULES = {7: "CiliumNetworkPolicy one/p: spec.egress[0]", 8: "CiliumNetworkPolicy one/p: spec.egress[1]"}


def entry(
    peer: int, rule: int, *, bits: int = 96, port: int = 80, action: int = l.ACTION_ALLOW
) -> tuple[l.PolicyKey, l.PolicyRule]:
    return l.PolicyKey(bits, 4, peer, l.DIRECTION_EGRESS, 6, port), l.PolicyRule(rule, action)


def test_every_rule_says_what_keeps_it_from_matching() -> None:
    entries = [
        entry(l.IDENTITY_WORLD, 7),
        entry(l.IDENTITY_WORLD, 7, bits=93, port=8000),
        entry(l.IDENTITY_REMOTE_NODE, 8),
        entry(l.IDENTITY_WORLD, 9, action=l.ACTION_DENY),
        entry((3 << 30) + 1, 10),
    ]
    assert considered(entries, RULES, (l.IDENTITY_WORLD, l.IDENTITY_ANY), FLOW) == (
        "CiliumNetworkPolicy one/p: spec.egress[0] is for this peer, but for TCP 80, TCP 8000-8007",
        "CiliumNetworkPolicy one/p: spec.egress[1] is for other peers",
        "rule 10 is for names; the pod has learned 10.0.0.7 for none of them",
    )


@pytest.mark.parametrize(
    ("direction", "peer", "flow", "expected"),
    [
        (
            l.DIRECTION_EGRESS,
            WORLD,
            FLOW,
            "egress: [{toCIDR: [10.0.0.7/32], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]",
        ),
        (
            l.DIRECTION_INGRESS,
            POD,
            Flow(POD.address, POD.address, 53, "UDP"),
            "ingress: [{fromEndpoints: [{matchLabels: {app: a, io.kubernetes.pod.namespace: one}}], "
            "toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]",
        ),
        (
            l.DIRECTION_EGRESS,
            Party("n1", pack("192.168.86.21"), l.IDENTITY_HOST),
            Flow(POD.address, POD.address, 0, "ICMP"),
            "egress: [{toEntities: [host], icmps: [{fields: [{family: IPv4, type: 8}]}]}]",
        ),
    ],
)
def test_the_suggested_rule_allows_this_flow_alone(direction: int, peer: Party, flow: Flow, expected: str) -> None:
    assert suggestion(direction, peer, flow) == yaml.safe_load(expected)


def test_an_explanation_reads_from_verdict_to_cure() -> None:
    denied = Stage("leaves pod one/a", Verdict.DEFAULT_DENY, "", ("CiliumNetworkPolicy one/p selects it",))
    explanation = Explanation(POD, WORLD, FLOW, (denied,), ("a note",), suggestion(l.DIRECTION_EGRESS, WORLD, FLOW))
    assert render(explanation) == (
        "pod one/a 10.244.1.3 (pod, identity 1073741829)  ->  10.0.0.7 (world, identity 2), TCP 443\n"
        "  leaves pod one/a: DEFAULT_DENY (no policy that selects the pod allows it)\n"
        "      CiliumNetworkPolicy one/p selects it\n"
        "  a note\n"
        "denied\n"
        "this rule would allow it:\n"
        "  egress:\n"
        "  - toCIDR:\n"
        "    - 10.0.0.7/32\n"
        "    toPorts:\n"
        "    - ports:\n"
        "      - port: '443'\n"
        "        protocol: TCP\n"
    )
    view = json.loads(json.dumps(report(explanation)))
    assert (view["allowed"], view["stages"][0]["verdict"], view["source"]["kind"]) == (False, "DEFAULT_DENY", "pod")


def test_an_allowed_flow_names_its_rule() -> None:
    stage = Stage("leaves pod one/a", Verdict.FORWARDED, RULES[7])
    text = render(Explanation(POD, WORLD, FLOW, (stage,)))
    assert "FORWARDED by CiliumNetworkPolicy one/p: spec.egress[0] (forwarded)\nallowed\n" in text
