"""Law 4: a policy that cannot be used denies, it never opens."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from instruments.cluster import Cluster
from instruments.depth import DEPTH

GOOD = "{endpointSelector: {matchLabels: {app: a}}, egress: [{toEntities: [world]}]}"


def policy(spec: Any, *, kind: str = "CiliumNetworkPolicy", **more: Any) -> dict[str, Any]:
    group = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    head = {"apiVersion": group, "kind": kind, "metadata": {"name": "p", "namespace": "one"}}
    return head | ({"spec": yaml.safe_load(spec)} if isinstance(spec, str) else {}) | more


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    cluster.pod("one/b", {"app": "b"})
    cluster.pod("two/a", {"app": "a"})
    return cluster


def directions(cluster: Cluster, pod: str) -> set[str]:
    """The directions in which a pod denies the world."""
    cluster.compile()
    return {way for way in ("ingress", "egress") if cluster.one_way(pod, way, "8.8.8.8", 80) == "denied"}


def test_the_last_good_version_stays_in_force(cluster: Cluster) -> None:
    cluster.put(policy(GOOD))
    assert directions(cluster, "one/a") == set()
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "denied"
    cluster.put(policy("{endpointSelector: {}, egress: [{toGroups: []}], ingress: [{}]}"))
    assert directions(cluster, "one/a") == set(), "the good version, not the broken one"
    assert cluster.one_way("one/a", "egress", "two/a", 80) == "denied"
    assert cluster.desired is not None
    (refusal,) = cluster.desired.accepted.refused.values()
    assert refusal.kept
    assert str(refusal).endswith("; its last good version stays in force")
    cluster.put(policy(GOOD))
    assert not cluster.compile().accepted.refused


@pytest.mark.parametrize(
    ("spec", "selected", "denied"),
    [  # the selector and the directions can be read
        ("{endpointSelector: {matchLabels: {app: a}}, egress: [{toNodes: [{}]}]}", {"one/a"}, {"egress"}),
        ("{endpointSelector: {matchLabels: {app: a}}, ingressDeny: [{fromNodes: [{}]}]}", {"one/a"}, {"ingress"}),
        # no direction can be read
        ("{endpointSelector: {matchLabels: {app: a}}, engress: []}", {"one/a"}, {"ingress", "egress"}),
        # the selector cannot be read
        ("{endpointSelector: {matchLabel: {app: a}}, egress: [{}]}", {"one/a", "one/b"}, {"egress"}),
        ("{endpointSelector: [], egress: [{}]}", {"one/a", "one/b"}, {"egress"}),
        ("[]", {"one/a", "one/b"}, {"ingress", "egress"}),
        (None, {"one/a", "one/b"}, {"ingress", "egress"}),
        # it selects nodes, so no pod
        ("{nodeSelector: {}, ingress: [{}]}", set(), {"ingress"}),
    ],
)
def test_without_a_good_version_what_it_selects_denies(
    cluster: Cluster, spec: str | None, selected: set[str], denied: set[str]
) -> None:
    cluster.put(policy(spec))
    for pod in ("one/a", "one/b", "two/a"):
        assert directions(cluster, pod) == (denied if pod in selected else set()), pod


@pytest.mark.parametrize(
    ("spec", "denied"),
    [
        ("{podSelector: {}, ingress: [{form: []}]}", {"ingress"}),
        ("{podSelector: {}, egress: [{form: []}]}", {"ingress", "egress"}),
        ("{podSelector: {}, egress: [{form: []}], policyTypes: [Egress]}", {"egress"}),
        ("{podSelector: {}, policyTypes: [Outward]}", {"ingress"}),
    ],
)
def test_a_broken_network_policy(cluster: Cluster, spec: str, denied: set[str]) -> None:
    cluster.put(policy(spec, kind="NetworkPolicy"))
    assert directions(cluster, "one/b") == denied
    assert directions(cluster, "two/a") == set()


def test_a_broken_clusterwide_policy_denies_all_pods(cluster: Cluster) -> None:
    cluster.put(policy("{ingress: [{}]}", kind="CiliumClusterwideNetworkPolicy"))
    assert directions(cluster, "two/a") == {"ingress"}


def test_several_specs_are_one_policy(cluster: Cluster) -> None:
    ingress = yaml.safe_load("{endpointSelector: {matchLabels: {app: b}}, ingress: [{}]}")
    cluster.put(policy(None, specs=[yaml.safe_load(GOOD), ingress]))
    assert directions(cluster, "one/b") == {"ingress"}
    broken = yaml.safe_load("{endpointSelector: {}, ingress: [{toPort: []}]}")
    cluster.remove("CiliumNetworkPolicy", "one/p")
    cluster.compile()
    cluster.put(policy(None, specs=[yaml.safe_load(GOOD), broken]))
    assert directions(cluster, "one/a") == {"egress", "ingress"}, "refused as a whole: the good half denies too"
    assert cluster.desired is not None
    (refusal,) = cluster.desired.accepted.refused.values()
    assert str(refusal.error) == "CiliumNetworkPolicy one/p: specs[1].ingress[0].toPort: unknown field"


def test_a_policy_that_is_gone_is_forgotten(cluster: Cluster) -> None:
    cluster.put(policy(GOOD))
    cluster.compile()
    cluster.remove("CiliumNetworkPolicy", "one/p")
    assert directions(cluster, "one/a") == set()
    assert cluster.desired is not None and not cluster.desired.accepted.good


WORDS = """
    endpointSelector nodeSelector podSelector matchLabels matchExpressions key operator values ingress egress
    ingressDeny egressDeny enableDefaultDeny policyTypes from to fromEndpoints toEndpoints fromEntities toEntities
    toCIDR toCIDRSet cidr except toFQDNs matchName matchPattern toPorts ports port endPort protocol rules ipBlock
    namespaceSelector description labels
""".split()  # noqa: SIM905
texts = st.sampled_from([*WORDS, "10.0.0.0/8", "TCP", "a.b", "In", "80", ""])
scalars = st.one_of(st.none(), st.booleans(), st.integers(-1, 70000), texts)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=40 * DEPTH, deadline=None)
@given(
    junk,
    st.dictionaries(st.sampled_from(WORDS), junk, max_size=5),
    st.sampled_from(["NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"]),
)
def test_whatever_a_policy_holds_it_is_taken_or_refused_and_denies(first: Any, spec: Any, kind: str) -> None:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    for text in (first, spec, {"endpointSelector": {}, "podSelector": {}} | spec):
        document = policy(None, kind=kind)
        document["spec"] = text
        cluster.put(document)
        accepted = cluster.compile().accepted
        if any(not refusal.kept for refusal in accepted.refused.values()) and "nodeSelector" not in str(text):
            assert accepted.specs
            assert all(spec.subject is not None and spec.default_deny for spec in accepted.specs)
