"""The whole compile: random clusters against the naive reading, transitions, generations, overflow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instruments.cluster import Cluster
from instruments.depth import DEPTH
from instruments.reference import World
from netstack.kernel import layout

NODES = {"n1": ("192.168.86.21", "10.244.1.0/24"), "n2": ("192.168.86.22", "10.244.2.0/24")}
ADDRESSES = ["192.168.86.21", "192.168.86.22", "10.244.2.200", "10.0.1.1", "10.1.2.3", "8.8.8.8", "192.168.86.50"]
PORTS = [("TCP", 80), ("TCP", 443), ("UDP", 53), ("TCP", 8080), ("ICMP", 8)]

label_sets = st.fixed_dictionaries({}, optional={"app": st.sampled_from("ab"), "tier": st.sampled_from("xy")})
expressions = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"key": st.sampled_from(["app", "tier"]), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
        ),
        st.fixed_dictionaries(
            {
                "key": st.sampled_from(["app", "tier"]),
                "operator": st.sampled_from(["In", "NotIn"]),
                "values": st.lists(st.sampled_from("abxy"), min_size=1, max_size=2, unique=True),
            }
        ),
    ),
    max_size=1,
)
selectors = st.fixed_dictionaries({}, optional={"matchLabels": label_sets, "matchExpressions": expressions})
endpoint_peers = st.one_of(
    selectors,
    st.builds(
        lambda namespace: {"matchLabels": {"io.kubernetes.pod.namespace": namespace}}, st.sampled_from(["one", "two"])
    ),
    st.just({"matchLabels": {"io.cilium.k8s.namespace.labels.team": "red"}}),
)
blocks = st.one_of(
    st.fixed_dictionaries(
        {"cidr": st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "10.0.1.0/24", "192.168.86.0/24", "8.8.8.8/32"])}
    ),
    st.just({"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}),
    st.just({"cidr": "0.0.0.0/0", "except": ["10.0.0.0/9", "8.8.8.8/32"]}),
)
entities = st.lists(
    st.sampled_from(["all", "world", "cluster", "host", "remote-node", "unmanaged", "none"]), min_size=1, max_size=2
)


def port_lists(protocols: list[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    one = st.one_of(
        st.fixed_dictionaries({"port": st.sampled_from(["80", "443", "53", "web"])}, optional=_protocol(protocols)),
        st.fixed_dictionaries({"port": st.just("50"), "endPort": st.just(500)}, optional=_protocol(protocols)),
    )
    return st.lists(one, min_size=1, max_size=2)


def _protocol(protocols: list[str]) -> dict[str, st.SearchStrategy[str]]:
    return {"protocol": st.sampled_from(protocols)}


@st.composite
def cilium_rules(draw: st.DrawFn, side: str) -> dict[str, Any]:
    kind, values = draw(
        st.sampled_from(
            [
                ("Endpoints", st.lists(endpoint_peers, max_size=2)),
                ("Entities", entities),
                ("CIDRSet", st.lists(blocks)),
                ("", None),
            ]
        )
    )
    rule: dict[str, Any] = {f"{side}{kind}": draw(values)} if kind else {}
    if draw(st.booleans()):
        rule["toPorts"] = [{"ports": draw(port_lists(["TCP", "UDP", "ANY"]))}]
    return rule


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(["p", "q", "r"]))
    namespace = draw(st.sampled_from(["one", "two"]))
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"]))
        sections = {
            name: st.lists(cilium_rules("from" if name.startswith("in") else "to"), max_size=2)
            for name in ("ingress", "ingressDeny", "egress", "egressDeny")
        }
        spec = draw(st.fixed_dictionaries({"endpointSelector": selectors}, optional=sections))
        if draw(st.integers(0, 4)) == 0:
            spec["enableDefaultDeny"] = {draw(st.sampled_from(["ingress", "egress"])): draw(st.booleans())}
        metadata = {"name": name} | ({"namespace": namespace} if kind == "CiliumNetworkPolicy" else {})
        return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}
    peer = st.one_of(
        st.fixed_dictionaries({"podSelector": selectors}),
        st.fixed_dictionaries({"namespaceSelector": st.sampled_from([{}, {"matchLabels": {"team": "red"}}])}),
        st.fixed_dictionaries({"ipBlock": blocks}),
    )

    def rule(side: str) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(
            {}, optional={side: st.lists(peer, max_size=2), "ports": port_lists(["TCP", "UDP"])}
        )

    spec = draw(
        st.fixed_dictionaries(
            {"podSelector": selectors},
            optional={
                "ingress": st.lists(rule("from"), max_size=2),
                "egress": st.lists(rule("to"), max_size=2),
                "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
            },
        )
    )
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


pods = st.fixed_dictionaries(
    {"labels": label_sets, "port": st.sampled_from([80, 8080, 0])},
)
PODS = {"one/a": "n1", "two/b": "n1", "one/c": "n2", "two/d": "n2"}
worlds = st.tuples(st.fixed_dictionaries(dict.fromkeys(PODS, pods)), st.lists(policies(), min_size=1, max_size=3))


def put(cluster: Cluster, drawn: tuple[dict[str, Any], list[dict[str, Any]]]) -> World:
    """The drawn world into the cluster, over what was there; and as the reference sees it."""
    drawn_pods, drawn_policies = drawn
    for ref in [ref for ref in cluster.objects if ref.kind.endswith("Policy")]:
        del cluster.objects[ref]
    team = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "two", "labels": {"team": "red"}}}
    cluster.put(team)
    world = World(namespaces={"two": {"team": "red"}}, nodes=NODES)
    for number, (name, node) in enumerate(PODS.items()):
        pod = drawn_pods[name]
        ports = [("web", "TCP", pod["port"])] if pod["port"] else []
        address = f"10.244.{node[1:]}.{10 + number}"
        cluster.pod(name, pod["labels"], node=node, ports=ports, address=address)
        world.pods[name] = {"labels": pod["labels"], "ports": ports, "address": address}
    world.policies = list({(p["kind"], *p["metadata"].values()): p for p in drawn_policies}.values())
    cluster.put(*world.policies)
    return world


def agree(cluster: Cluster, world: World) -> None:
    for pod in ("one/a", "two/b"):
        for direction, other in (("egress", "to"), ("ingress", "from")):
            for peer in [*PODS, *ADDRESSES]:
                if peer == pod:
                    continue
                for protocol, port in PORTS:
                    wanted = world.judge(pod, direction, peer, protocol, port)
                    got = cluster.one_way(pod, direction, peer, port, protocol)
                    assert got == wanted, f"{pod} {other} {peer} {port}/{protocol}: tables {got}, reference {wanted}"


@settings(max_examples=40 * DEPTH, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds)
def test_the_tables_allow_exactly_what_the_objects_say(drawn: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    cluster = Cluster()
    world = put(cluster, drawn)
    cluster.compile()
    assert cluster.desired is not None and not cluster.desired.accepted.refused
    agree(cluster, world)


@settings(max_examples=15 * DEPTH, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds, worlds)
def test_no_state_between_two_worlds_opens_or_breaks_anything(
    first: tuple[dict[str, Any], list[dict[str, Any]]], second: tuple[dict[str, Any], list[dict[str, Any]]]
) -> None:
    cluster = Cluster()
    put(cluster, first)
    cluster.compile()
    world = put(cluster, second)
    cluster.compile()
    agree(cluster, world)


def test_the_generation_grows_only_when_verdicts_may_change() -> None:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    assert cluster.compile().generation == 1
    cluster.service("one/web", ["10.244.1.3"], clusterIP="10.96.0.1")
    assert cluster.compile().generation == 1
    cluster.pod("one/b", {"app": "b"})
    assert cluster.compile().generation == 2


def test_config_says_who_the_node_is() -> None:
    cluster = Cluster()
    cluster.compile()
    config = layout.Config.unpack(cluster.table("config").entries[layout.Number(0).pack()])
    assert (config.node4[12:], config.pod_net4[12:], config.pod_net4_bits) == (
        b"\xc0\xa8V\x15",
        b"\x0a\xf4\x01\x00",
        120,
    )
    assert (config.uplink, config.node6) == (2, bytes(16))


@pytest.mark.parametrize("small", ["policy", "identities", "services", "backends"])
def test_a_map_that_is_too_small_leaves_everything_as_it_is(small: str) -> None:
    cluster = Cluster(sizes={small: 7})
    cluster.pod("one/a", {"app": "a"})
    cluster.compile()
    before = cluster.table(small)
    for number in range(10):
        cluster.pod(f"one/p{number}", {"app": str(number)}, node="n2")
        cluster.service(f"one/s{number}", [f"10.244.2.{100 + number}/n2"], clusterIP=f"10.96.0.{number + 1}")
    spec = {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}
    metadata = {"name": "p", "namespace": "one"}
    cluster.put({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    desired = cluster.compile()
    assert cluster.table(small) == before
    assert any(f"map {small} is too small" in problem for problem in desired.problems)


def test_a_policy_that_the_source_cannot_read_denies_its_namespace() -> None:
    cluster = Cluster()
    cluster.pod("one/a")
    cluster.pod("two/b")
    cluster.put(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p", "namespace": "one", "labels": {"x": 1}},
            "spec": {"endpointSelector": {"matchLabels": {"app": "z"}}},
        }
    )
    desired = cluster.compile()
    assert cluster.one_way("one/a", "egress", "8.8.8.8", 80) == "denied"
    assert cluster.one_way("two/b", "egress", "8.8.8.8", 80) == "allowed"
    (refusal,) = desired.accepted.refused.values()
    assert str(refusal) == (
        "CiliumNetworkPolicy one/p: metadata.labels.x: must be a string, not the int '1'; "
        "the pods that it selects deny instead"
    )
