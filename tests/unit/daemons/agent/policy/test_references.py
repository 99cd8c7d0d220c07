from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from instruments.calls import calls
from instruments.cluster import Cluster
from netstack.agent.policy.accept import read_policy
from netstack.agent.policy.references import Referred, resolve
from netstack.agent.policy.rules import Spec
from netstack.core.ref import Ref
from netstack.source.models import CIDRGroup
from netstack.source.parse import parse


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.pod("default/openclaw", {"app": "openclaw"})
    cluster.pod("default/web", {"app": "web"})
    cluster.pod("default/far", {"app": "far"}, node="n2")
    cluster.pod("other/web", {"app": "web"}, node="n2")
    cluster.pod("kube-system/dns", {"k8s-app": "kube-dns"}, node="n2", address="10.244.2.53")
    return cluster


def openclaw(*egress: str) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "openclaw"}},
            "egress": [yaml.safe_load(item) for item in egress],
        },
    }


@pytest.mark.parametrize(
    ("services", "allowed"),
    [
        ("{k8sService: {serviceName: web}}", {"default/web"}),
        ("{k8sService: {serviceName: web, namespace: other}}", {"other/web"}),
        ("{k8sService: {serviceName: nothing}}", set()),
        ("{k8sServiceSelector: {selector: {matchLabels: {tier: front}}}}", {"default/web"}),
        ("{k8sServiceSelector: {selector: {matchLabels: {tier: front}}, namespace: other}}", {"other/web"}),
        ("{k8sServiceSelector: {selector: {matchLabels: {tier: front}}, namespace: ''}}", {"default/web"}),
        ("{k8sService: {serviceName: ''}}", set()),
        ("{k8sService: {serviceName: outside}}", {"198.51.100.7"}),
    ],
)
def test_toservices_means_the_pods_or_addresses_behind_them(cluster: Cluster, services: str, allowed: set[str]) -> None:
    for namespace in ("default", "other"):
        cluster.service(f"{namespace}/web", [], selector={"app": "web"})
        service = cluster.objects[Ref("Service", namespace, "web")]
        cluster.objects[service.meta.ref] = replace(service, meta=replace(service.meta, labels={"tier": "front"}))
    cluster.service("default/outside", ["198.51.100.7/none", "10.244.2.53/none"])
    cluster.put(openclaw(f"toServices: [{services}]"))
    cluster.compile()
    peers = ("default/web", "other/web", "default/far", "198.51.100.7", "198.51.100.8", "kube-system/dns")
    assert {peer for peer in peers if cluster.one_way("default/openclaw", "egress", peer, 8080) == "allowed"} == allowed


def test_a_service_that_selects_other_pods_moves_its_rule(cluster: Cluster) -> None:
    cluster.service("default/web", [], selector={"app": "web"})
    cluster.put(openclaw("toServices: [{k8sService: {serviceName: web}}]"))
    cluster.compile()
    cluster.service("default/web", [], selector={"app": "far"})
    cluster.compile()
    assert cluster.verdict("default/openclaw", "default/web", 80) == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "default/far", 80) == "ALLOWED"


def test_a_cluster_wide_policy_names_the_namespace_of_a_service(cluster: Cluster) -> None:
    rule = openclaw("toServices: [{k8sService: {serviceName: web}}]") | {"kind": "CiliumClusterwideNetworkPolicy"}
    cluster.put(rule)
    (refusal,) = cluster.compile().accepted.refused.values()
    assert "k8sService.namespace: is required in a cluster-wide policy" in str(refusal)


def group(name: str, *cidrs: str, **labels: str) -> dict[str, Any]:
    meta = {"name": name, "labels": labels}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": meta,
        "spec": {"externalCIDRs": [*cidrs]},
    }


@pytest.mark.parametrize(
    ("cidr_set", "allowed"),
    [
        ("{cidrGroupRef: vpn}", {"198.51.100.7", "203.0.113.9"}),
        ("{cidrGroupRef: vpn, except: [198.51.100.0/28]}", {"203.0.113.9"}),
        ("{cidrGroupRef: vpn, except: [198.0.0.0/8]}", {"203.0.113.9"}),
        ("{cidrGroupSelector: {matchLabels: {tier: lab}}}", {"192.0.2.1"}),
        ("{cidrGroupRef: nothing}", set()),
        ("{cidrGroupRef: ''}", set()),
        ("{cidr: 192.0.2.0/24}", {"192.0.2.1"}),
    ],
)
def test_a_cidr_group_means_its_ranges(cluster: Cluster, cidr_set: str, allowed: set[str]) -> None:
    cluster.put(group("vpn", "198.51.100.0/24", "203.0.113.9/32"), group("lab", "192.0.2.0/24", tier="lab"))
    cluster.put(openclaw(f"toCIDRSet: [{cidr_set}]"))
    cluster.compile()
    peers = ("198.51.100.7", "203.0.113.9", "192.0.2.1", "8.8.8.8", "default/web")
    assert {peer for peer in peers if cluster.one_way("default/openclaw", "egress", peer, 80) == "allowed"} == allowed


def test_a_group_that_changes_moves_its_rules(cluster: Cluster) -> None:
    cluster.put(group("vpn", "198.51.100.0/24"), openclaw("toCIDRSet: [{cidrGroupRef: vpn}]"))
    cluster.compile()
    cluster.put(group("vpn", "203.0.113.0/24"))
    cluster.compile()
    assert cluster.verdict("default/openclaw", "198.51.100.7", 80) == "DEFAULT_DENY"
    assert cluster.verdict("default/openclaw", "203.0.113.9", 80) == "ALLOWED"


def test_a_deny_of_what_is_not_there_denies_all_and_says_so(cluster: Cluster) -> None:
    rule = openclaw("toEntities: [world]")
    rule["spec"]["egressDeny"] = [{"toCIDRSet": [{"cidrGroupRef": "gone"}]}]
    cluster.put(rule)
    desired = cluster.compile()
    assert cluster.verdict("default/openclaw", "8.8.8.8", 80) == "POLICY_DENIED"
    assert "CiliumNetworkPolicy default/p: spec.egressDeny[0]: there is no CiliumCIDRGroup gone" in desired.problems
    cluster.put(group("gone", "198.51.100.0/24"))
    assert cluster.compile().problems == ()
    assert cluster.verdict("default/openclaw", "8.8.8.8", 80) == "ALLOWED"
    assert cluster.verdict("default/openclaw", "198.51.100.7", 80) == "POLICY_DENIED"


@pytest.mark.parametrize(
    ("deny", "broken"),
    [
        ("toCIDRSet: [{cidrGroupSelector: {matchLabels: {tier: lab}}}]", group("lab", "198.51.100.0/240", tier="lab")),
        (
            "toServices: [{k8sServiceSelector: {selector: {matchLabels: {tier: front}}}}]",
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "None"}},
        ),
    ],
)
def test_a_deny_by_labels_of_what_cannot_be_read_denies_all_and_says_so(
    cluster: Cluster, deny: str, broken: dict[str, Any]
) -> None:
    """Whatever else it selects."""
    rule = openclaw("toEntities: [all]")
    rule["spec"]["egressDeny"] = [yaml.safe_load(deny)]
    cluster.put(rule, group("other", "203.0.113.0/24", tier="lab"))
    cluster.compile()
    assert cluster.verdict("default/openclaw", "198.51.100.7", 80) == "ALLOWED"
    cluster.put(broken)
    problems = cluster.compile().problems
    assert cluster.verdict("default/openclaw", "198.51.100.7", 80) == "POLICY_DENIED"
    name = f"{broken['kind']} {'default/' * (broken['kind'] == 'Service')}{broken['metadata']['name']}"
    assert f"CiliumNetworkPolicy default/p: spec.egressDeny[0]: {name} cannot be read, and may be meant" in problems
    cluster.broken.clear()
    assert cluster.compile().problems == ()
    assert cluster.verdict("default/openclaw", "198.51.100.7", 80) == "ALLOWED"


def test_an_allow_by_labels_goes_on_beside_what_cannot_be_read(cluster: Cluster) -> None:
    cluster.put(group("good", "203.0.113.0/24", tier="lab"), group("bad", "198.51.100.0/240", tier="lab"))
    cluster.put(openclaw("toCIDRSet: [{cidrGroupSelector: {matchLabels: {tier: lab}}}]"))
    assert cluster.compile().problems == ()
    assert cluster.verdict("default/openclaw", "203.0.113.9", 80) == "ALLOWED"
    assert cluster.verdict("default/openclaw", "198.51.100.7", 80) == "DEFAULT_DENY"


def test_a_long_group_without_a_long_list_is_not_compared_range_by_range() -> None:
    ranges = [f"10.{number >> 8}.{number & 255}.0" for number in range(1000)]
    read = parse(group("block", *(f"{item}/24" for item in ranges)))
    assert isinstance(read, CIDRGroup)
    without = [f"{item}/{24 if at % 2 else 25}" for at, item in enumerate(ranges)]
    rule = openclaw(f"toCIDRSet: [{{cidrGroupRef: block, except: {without}}}]")
    specs = tuple(read_policy(Ref("CiliumNetworkPolicy", "default", "p"), (rule["spec"],)))
    found: list[Spec] = []
    assert calls(lambda: found.extend(resolve(specs, Referred(groups=(read,)))[0])) < 50 * len(ranges)
    peers = found[0].rules[0].peers
    assert peers is not None
    told = [(str(block.prefix), list(map(str, block.excluded))) for block in peers.blocks]
    assert told == [(f"{item}/24", [f"{item}/25"]) for item in ranges[::2]]
