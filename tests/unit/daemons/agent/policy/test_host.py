"""Policies for nodes: which node they select, what they deny, and what nothing denies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from instruments import clusters
from instruments.cluster import Cluster
from instruments.clusters import Raw
from instruments.depth import examples
from instruments.reference import KEPT, World
from netstack.agent.policy.host import Kept
from netstack.agent.report import host_view, policy_statuses
from netstack.kernel import layout
from netstack.source.snapshot import Snapshot

NODE, OTHER, API, WORLD = "192.168.86.21", "192.168.86.22", "192.168.86.23", "192.168.86.50"
SHUT = "{nodeSelector: {}, ingress: [{}], egress: [{}]}"
DENIED = "{nodeSelector: {}, ingressDeny: [{fromEntities: [all]}], egressDeny: [{toEntities: [all]}]}"


def policy(spec: str, name: str = "p") -> Raw:
    head = {"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": name}}
    return head | {"spec": yaml.safe_load(spec)}


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.put(*clusters.FIXED)
    cluster.pod("one/a", {"app": "a"})
    cluster.pod("kube-system/dns", {"k8s-app": "kube-dns"}, node="n2", address="10.244.2.53")
    cluster.service("kube-system/kube-dns", ["10.244.2.53/n2"], port=53, target_port=53, clusterIP="10.96.0.10")
    return cluster


def guarded(cluster: Cluster) -> bool:
    """Whether the node is an endpoint, and the programs know it."""
    config = layout.Config.unpack(next(iter(cluster.table("config").entries.values())))
    there = cluster.address(NODE) in cluster.table("endpoints").entries
    assert bool(config.host) == there
    return there


def said(cluster: Cluster, direction: str, peer: str, port: int, protocol: str = "TCP") -> str:
    return cluster.one_way(NODE, direction, peer, port, protocol) if guarded(cluster) else "allowed"


def test_a_node_that_no_policy_selects_is_no_endpoint(cluster: Cluster) -> None:
    cluster.put(policy("{nodeSelector: {matchLabels: {role: other}}, ingress: [{}]}"))
    desired = cluster.compile()
    assert not guarded(cluster) and host_view(desired) == {}
    cluster.put(policy("{nodeSelector: {matchLabels: {role: board}}, ingress: [{}]}"))
    cluster.compile()
    assert guarded(cluster)
    cluster.remove("CiliumClusterwideNetworkPolicy", "p")
    generation = desired.generation
    assert cluster.compile().generation > generation
    assert not guarded(cluster)


def test_policies_for_nodes_select_no_pods_and_those_for_pods_no_nodes(cluster: Cluster) -> None:
    cluster.put(policy(SHUT))
    cluster.compile()
    assert cluster.one_way("one/a", "egress", WORLD, 443) == "allowed"
    cluster.put(policy("{endpointSelector: {}, ingress: [{}]}"))
    cluster.compile()
    assert not guarded(cluster)


def test_rules_of_nodes(cluster: Cluster) -> None:
    ports = "toPorts: [{ports: [{port: '80', protocol: TCP}]}]"
    cluster.put(
        policy(
            f"{{nodeSelector: {{}}, ingress: [{{fromCIDR: [192.168.86.0/24], {ports}}}, "
            "{fromEntities: [remote-node]}, "
            f"{{fromEndpoints: [{{matchLabels: {{app: a}}}}], {ports}}}]}}"
        )
    )
    cluster.compile()
    assert said(cluster, "ingress", WORLD, 80) == "allowed"
    assert said(cluster, "ingress", WORLD, 81) == "denied"
    assert said(cluster, "ingress", OTHER, 81) == "allowed"
    assert said(cluster, "ingress", "one/a", 80) == "allowed"
    assert said(cluster, "ingress", "8.8.8.8", 80) == "denied"
    assert said(cluster, "egress", "8.8.8.8", 80) == "allowed"


@pytest.mark.parametrize("spec", [SHUT, DENIED])
def test_nothing_cuts_what_is_kept(cluster: Cluster, spec: str) -> None:
    cluster.put(policy(spec))
    cluster.compile()
    for direction, protocol, port, entity in KEPT:
        for peer in (WORLD, OTHER, API, "one/a", "8.8.8.8"):
            wanted = "allowed" if not entity or peer == API else "denied"
            assert said(cluster, direction, peer, port, protocol) == wanted, (direction, protocol, port, peer)
            assert said(cluster, direction, peer, port + 1, protocol) == "denied"
    for protocol in ("TCP", "UDP"):
        assert said(cluster, "egress", "10.244.2.53", 53, protocol) == "allowed"
        assert said(cluster, "egress", "8.8.8.8", 53, protocol) == "denied"


def test_protection_is_switched_off_by_name_only(cluster: Cluster) -> None:
    cluster.place = replace(cluster.place, kept=Kept(protected=False))
    cluster.put(policy(DENIED))
    desired = cluster.compile()
    for direction, protocol, port, _ in KEPT:
        wanted = "allowed" if protocol == "UDP" else "denied"
        assert said(cluster, direction, API, port, protocol) == wanted, (direction, port)
    assert host_view(desired)["kept"] == "lock-out protection is switched off"


def test_ssh_may_be_elsewhere(cluster: Cluster) -> None:
    cluster.place = replace(cluster.place, kept=Kept(ssh_ports=(2222,), api_port=443))
    cluster.put(policy(SHUT))
    cluster.compile()
    assert said(cluster, "ingress", WORLD, 22) == said(cluster, "ingress", WORLD, 6443) == "denied"
    assert said(cluster, "ingress", WORLD, 2222) == said(cluster, "ingress", WORLD, 443) == "allowed"


def test_the_author_is_told_what_stays_open(cluster: Cluster) -> None:
    cluster.put(policy(SHUT))
    desired = cluster.compile()
    kept = "always reachable: SSH (TCP 22), API server (TCP 6443), kubelet for the API server"
    (status,) = policy_statuses(desired, Snapshot(cluster.objects)).values()
    assert status["conditions"][0] | {} == {"type": "Valid", "status": "True", "reason": "Enforced", "message": kept}
    view = host_view(desired)
    assert (view["enforces"], view["policies"]) == (["ingress", "egress"], ["CiliumClusterwideNetworkPolicy p"])


def test_a_mistake_locks_nobody_out(cluster: Cluster) -> None:
    cluster.put(policy("{nodeSelector: {}, ingress: [{fromGroups: []}]}"))
    (refusal,) = cluster.compile().accepted.refused.values()
    assert str(refusal).endswith("so the whole policy is refused; nothing of it is in force")
    assert not guarded(cluster)
    cluster.put(policy(SHUT))
    cluster.compile()
    cluster.put(policy("{nodeSelector: {}, ingress: [{fromGroups: []}]}"))
    cluster.compile()
    assert guarded(cluster), "the last good version stays"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{nodeSelector: {}, endpointSelector: {}}", "nodeSelector: cannot be combined with endpointSelector"),
        ("{nodeSelector: [], ingress: [{}]}", "nodeSelector: must be a mapping"),
        (
            "{nodeSelector: {}, egress: [{toFQDNs: [{matchName: a.io}]}]}",
            "egress[0].toFQDNs: names are not enforced for nodes",
        ),
        (
            "{nodeSelector: {}, ingress: [{toPorts: [{ports: [{port: http}]}]}]}",
            "ingress[0].toPorts: a node has no ports with names",
        ),
    ],
)
def test_what_nodes_cannot_enforce_is_refused(cluster: Cluster, spec: str, words: str) -> None:
    cluster.put(policy(spec))
    (refusal,) = cluster.compile().accepted.refused.values()
    assert f"CiliumClusterwideNetworkPolicy p: spec.{words}" in str(refusal)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(clusters.worlds())
def test_the_nodes_rules_are_what_the_objects_say(manifests: list[Raw]) -> None:
    cluster = Cluster()
    cluster.put(*manifests)
    for name in clusters.OWN:
        cluster.attach(name)
    assert not cluster.compile().accepted.refused
    world = World(manifests, "n1")
    packets: Any = [*clusters.PACKETS, ("TCP", 22), ("TCP", 6443), ("TCP", 10250), ("UDP", 67), ("UDP", 68)]
    for direction, peer in [(d, p) for d in ("ingress", "egress") for p in clusters.PEERS if p != NODE]:
        for protocol, port in packets:
            wanted = world.judge_node(direction, peer, protocol, port)
            assert said(cluster, direction, peer, port, protocol) == wanted, (direction, peer, protocol, port)
