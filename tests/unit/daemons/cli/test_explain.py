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
    "pod one/a",
    pack("10.244.1.3"),
    (1 << 30) + 5,
    {
        "app": "a",
        "pod-template-hash": "7d4",
        "io.kubernetes.pod.namespace": "one",
        "io.cilium.k8s.policy.cluster": "default",
    },
    endpoint=4,
    pod="one/a",
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
        entry((1 << 30) + 53, 10, port=53),  # a DNS server, who may be asked for the names
    ]
    assert considered(entries, RULES, (l.IDENTITY_WORLD, l.IDENTITY_ANY), FLOW) == (
        "CiliumNetworkPolicy one/p: spec.egress[0] is for this peer, but for TCP 80, TCP 8000-8007",
        "CiliumNetworkPolicy one/p: spec.egress[1] is for other peers",
        "rule 10 is for names; the pod has learned 10.0.0.7 for none of them lately",
    )


@pytest.mark.parametrize(
    ("protocol", "port", "key"),
    [
        ("TCP", 443, l.PolicyKey(96, 4, l.IDENTITY_WORLD, l.DIRECTION_EGRESS, 6, 443)),
        ("TCP", 8003, l.PolicyKey(93, 4, l.IDENTITY_WORLD, l.DIRECTION_EGRESS, 6, 8000)),
        ("UDP", 9, l.PolicyKey(l.POLICY_BITS_PROTO, 4, l.IDENTITY_ANY, l.DIRECTION_EGRESS, 17, 0)),
        ("SCTP", 9, l.PolicyKey(l.POLICY_BITS_ANY, 4, l.IDENTITY_ANY, l.DIRECTION_EGRESS, 0, 0)),
        ("ICMP", 0, l.PolicyKey(96, 4, l.IDENTITY_WORLD, l.DIRECTION_EGRESS, 1, 8)),
    ],
)
def test_a_rule_that_came_after_the_flow_is_not_said_to_be_for_others(
    protocol: str, port: int, key: l.PolicyKey
) -> None:
    entries = [(key, l.PolicyRule(7, l.ACTION_ALLOW)), entry(l.IDENTITY_WORLD, 7)]
    flow = Flow(POD.address, WORLD.address, port, protocol)
    assert considered(entries, RULES, (l.IDENTITY_WORLD, l.IDENTITY_ANY), flow) == (
        "CiliumNetworkPolicy one/p: spec.egress[0] is for this flow by now",
    )


@pytest.mark.parametrize(
    ("direction", "peer", "flow", "name", "title", "expected"),
    [
        (
            l.DIRECTION_EGRESS,
            WORLD,
            FLOW,
            "",
            "a-to-10.0.0.7-tcp-443",
            "egress: [{toCIDR: [10.0.0.7/32], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]",
        ),
        (
            l.DIRECTION_INGRESS,
            POD,
            Flow(POD.address, POD.address, 53, "UDP"),
            "",
            "a-from-one-a-udp-53",
            "ingress: [{fromEndpoints: [{matchLabels: {app: a, io.kubernetes.pod.namespace: one}}], "
            "toPorts: [{ports: [{port: '53', protocol: UDP}]}]}]",
        ),
        (
            l.DIRECTION_EGRESS,
            Party("node n1", pack("192.168.86.21"), l.IDENTITY_HOST),
            Flow(POD.address, POD.address, 0, "ICMP"),
            "",
            "a-to-n1-icmp",
            "egress: [{toEntities: [host], icmps: [{fields: [{family: IPv4, type: 8}]}]}]",
        ),
        (
            l.DIRECTION_EGRESS,
            WORLD,
            FLOW,
            "api.x.io",
            "a-to-api.x.io-tcp-443",
            "egress: [{toFQDNs: [{matchName: api.x.io}], toPorts: [{ports: [{port: '443', protocol: TCP}]}]}]",
        ),
    ],
)
def test_the_suggested_policy_allows_this_flow_alone(
    direction: int, peer: Party, flow: Flow, name: str, title: str, expected: str
) -> None:
    rules = yaml.safe_load(expected)
    made = suggestion(direction, POD, peer, flow, name)
    assert made["metadata"] == {"name": title, "namespace": "one"}
    selected = {"endpointSelector": {"matchLabels": {"app": "a"}}}
    assert made["spec"] == selected | {"enableDefaultDeny": dict.fromkeys(rules, False)} | rules


def test_no_policy_is_suggested_for_who_is_not_known() -> None:
    assert suggestion(l.DIRECTION_EGRESS, WORLD, POD, FLOW) == {}


def test_an_explanation_reads_from_verdict_to_cure() -> None:
    denied = Stage("leaves pod one/a", Verdict.DEFAULT_DENY, "", ("CiliumNetworkPolicy one/p selects it",))
    cure = suggestion(l.DIRECTION_EGRESS, POD, WORLD, FLOW)
    explanation = Explanation(POD, WORLD, FLOW, (denied,), ("a note",), cure)
    assert render(explanation) == (
        "pod one/a 10.244.1.3 (pod, identity 1073741829)  ->  10.0.0.7 (world, identity 2), TCP 443\n"
        "  leaves pod one/a: DEFAULT_DENY (no policy that selects the pod allows it)\n"
        "      CiliumNetworkPolicy one/p selects it\n"
        "  a note\n"
        "denied\n"
        "this policy would allow it:\n"
        "  apiVersion: cilium.io/v2\n"
        "  kind: CiliumNetworkPolicy\n"
        "  metadata:\n"
        "    name: a-to-10.0.0.7-tcp-443\n"
        "    namespace: one\n"
        "  spec:\n"
        "    endpointSelector:\n"
        "      matchLabels:\n"
        "        app: a\n"
        "    enableDefaultDeny:\n"
        "      egress: false\n"
        "    egress:\n"
        "    - toCIDR:\n"
        "      - 10.0.0.7/32\n"
        "      toPorts:\n"
        "      - ports:\n"
        "        - port: '443'\n"
        "          protocol: TCP\n"
    )
    view = json.loads(json.dumps(report(explanation)))
    assert (view["allowed"], view["stages"][0]["verdict"], view["source"]["kind"]) == (False, "DEFAULT_DENY", "pod")


def test_an_allowed_flow_names_its_rule() -> None:
    stage = Stage("leaves pod one/a", Verdict.FORWARDED, RULES[7])
    text = render(Explanation(POD, WORLD, FLOW, (stage,)))
    assert "FORWARDED by CiliumNetworkPolicy one/p: spec.egress[0] (forwarded)\nallowed\n" in text


def test_a_question_says_for_what_and_who_else_decides() -> None:
    server = Party("name server", pack("10.96.0.10"), l.IDENTITY_WORLD, service=True)
    stage = Stage("leaves pod one/a", Verdict.REDIRECTED_DNS, RULES[7])
    flow = Flow(POD.address, server.address, 53, "UDP")
    first, _, *last = render(
        Explanation(POD, server, flow, (stage,), asked="x.io", beyond="node n2 knows; there: ...")
    ).splitlines()
    assert first.endswith("->  name server 10.96.0.10 (service), UDP 53, to ask for x.io")
    assert last == ["  node n2 knows; there: ...", "allowed, as far as this node knows"]
