"""NetworkPolicy: what it allows, and what is refused with which words."""

from __future__ import annotations

import pytest
import yaml

from instruments.cluster import Cluster
from netstack.agent.policy.accept import read_policy
from netstack.core.errors import BadObject
from netstack.core.ref import Ref

ALLOWED, DENIED = ("ALLOWED", "FREE"), ("DEFAULT_DENY",)


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red", "labels": {"team": "red"}}})
    cluster.pod("default/web", {"app": "web"}, ports=[("http", "TCP", 8080)])
    cluster.pod("default/client", {"app": "client"}, node="n2")
    cluster.pod("red/client", {"app": "client"}, node="n2")
    cluster.pod("red/other", {"app": "other"}, node="n2")
    return cluster


def put(cluster: Cluster, spec: str) -> None:
    metadata = {"name": "p", "namespace": "default"}
    document = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata}
    cluster.put(document | {"spec": yaml.safe_load(spec)})
    cluster.compile()


def test_a_namespace_has_no_other_ones_name(cluster: Cluster) -> None:
    labels = {"kubernetes.io/metadata.name": "default"}
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red", "labels": labels}})
    put(cluster, f"ingress: [{{from: [{{namespaceSelector: {{matchLabels: {labels}}}}}]}}]")
    assert cluster.one_way("default/web", "ingress", "default/client", 80) == "allowed"
    assert cluster.one_way("default/web", "ingress", "red/client", 80) == "denied"


@pytest.mark.parametrize(
    ("rules", "allowed", "denied"),
    [
        ("", [], ["default/client", "8.8.8.8"]),
        ("ingress: [{}]", ["default/client", "red/client", "8.8.8.8", "192.168.86.22"], []),
        ("ingress: [{from: []}]", ["default/client", "8.8.8.8"], []),
        ("ingress: [{from: [{podSelector: {}}]}]", ["default/client"], ["red/client", "8.8.8.8"]),
        (
            "ingress: [{from: [{namespaceSelector: {}}]}]",
            ["default/client", "red/client"],
            ["8.8.8.8", "192.168.86.22"],
        ),
        ("ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]", ["red/other"], ["default/client"]),
        (
            "ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, "
            "podSelector: {matchLabels: {app: client}}}]}]",
            ["red/client"],
            ["red/other", "default/client"],
        ),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {podSelector: {}}]}]",
            ["10.2.0.1", "default/client"],
            ["10.1.0.1", "red/client"],
        ),
    ],
)
def test_peers(cluster: Cluster, rules: str, allowed: list[str], denied: list[str]) -> None:
    put(cluster, f"podSelector: {{matchLabels: {{app: web}}}}\n{rules}")
    for peer in allowed:
        assert cluster.verdict(peer, "default/web", 80) in ALLOWED, peer
    for peer in denied:
        assert cluster.verdict(peer, "default/web", 80) in DENIED, peer
    assert cluster.verdict("default/web", "8.8.8.8", 80) == "FREE", "egress is another direction"


@pytest.mark.parametrize(
    ("types", "ingress", "egress"),
    [
        ("", "DEFAULT_DENY", "FREE"),
        ("policyTypes: [Egress]", "FREE", "DEFAULT_DENY"),
        ("policyTypes: [Ingress, Egress]", "DEFAULT_DENY", "DEFAULT_DENY"),
        ("egress: [{ports: [{port: 53}]}]", "DEFAULT_DENY", "DEFAULT_DENY"),
    ],
)
def test_policy_types(cluster: Cluster, types: str, ingress: str, egress: str) -> None:
    put(cluster, f"podSelector: {{}}\n{types}")
    assert cluster.verdict("red/client", "default/web", 80) == ingress
    assert cluster.verdict("default/web", "8.8.8.8", 80) == egress


def test_ports_are_tcp_unless_they_say_otherwise(cluster: Cluster) -> None:
    put(
        cluster,
        "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: http}, {protocol: UDP}, {port: 90, endPort: 99}]}]}",
    )
    for port, protocol in ((80, "TCP"), (8080, "TCP"), (5, "UDP"), (95, "TCP")):
        assert cluster.verdict("red/client", "default/web", port, protocol) == "ALLOWED"
    for port, protocol in ((81, "TCP"), (100, "TCP"), (8, "ICMP")):
        assert cluster.verdict("red/client", "default/web", port, protocol) == "DEFAULT_DENY"


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ("{podSelector: {}, policyTypes: [Inward]}", "spec.policyTypes[0]: must be Ingress or Egress, not 'Inward'"),
        ("{podSelector: {}, ingress: [{from: [{}]}]}",
         "spec.ingress[0].from[0].podSelector: a peer needs podSelector, namespaceSelector or ipBlock"),
        ("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
         "spec.ingress[0].from[0].ipBlock: cannot be combined with a selector in one peer"),
        ("{podSelector: {}, ingress: [{to: []}]}", "spec.ingress[0].to: unknown field"),
        ("{podSelector: {matchExpressions: [{key: a, operator: Near}]}}",
         "spec.podSelector.matchExpressions[0].operator: must be one of In, NotIn, Exists, DoesNotExist, not 'Near'"),
        ("{podSelector: {}, ingress: [{ports: [{port: 0}]}]}",
         "spec.ingress[0].ports[0].port: must be from 1 to 65535, not 0"),
        ("{podSelector: {}, ingress: [{ports: [{port: http, endPort: 9}]}]}",
         "spec.ingress[0].ports[0].endPort: cannot be given with a port's name"),
        ("{podSelector: {}, ingress: [{ports: [{port: a-name-that-is-too-long}]}]}",
         "spec.ingress[0].ports[0].port: 'a-name-that-is-too-long' is longer than a port's name may be (15)"),
        ("{podSelector: {}, ingress: [{ports: [{port: true}]}]}",
         "spec.ingress[0].ports[0].port: must be a port number or name, not True"),
    ],
)  # fmt: skip
def test_refusals(spec: str, error: str) -> None:
    with pytest.raises(BadObject) as refused:
        read_policy(Ref("NetworkPolicy", "default", "p"), (yaml.safe_load(spec),))
    assert str(refused.value) == f"NetworkPolicy default/p: {error}"
