"""Services and EndpointSlices -> services, slots, backends."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruments.cluster import Cluster
from netstack.agent import numbers
from netstack.agent.desired import Before, Memory
from netstack.agent.services import Around, Compiler, ServiceTables
from netstack.core.address import pack, unpack
from netstack.core.ref import Ref
from netstack.kernel import layout
from netstack.source.models import Endpoint, EndpointSlice, Meta, Service, ServicePort
from netstack.source.parse import parse

WORLD, CLUSTER = layout.SCOPE_WORLD, layout.SCOPE_CLUSTER
A, B, C = "10.244.1.3", "10.244.1.4", "10.244.2.3/n2"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def shown(addresses: list[bytes] | None) -> set[str] | None:
    return None if addresses is None else {unpack(address) for address in addresses}


def test_a_cluster_ip_is_balanced_over_all_nodes(cluster: Cluster) -> None:
    cluster.service("one/web", [A, B, C], clusterIP="10.96.0.1")
    cluster.compile()
    slots = cluster.backends("10.96.0.1", 80)
    assert slots is not None and len(slots) == 67
    assert set(Counter(slots).values()) == {22, 23}
    assert shown(slots) == {"10.244.1.3", "10.244.1.4", "10.244.2.3"}
    assert cluster.backends("10.96.0.1", 80, scope=WORLD) is None


def test_an_address_itself_refuses_every_other_port(cluster: Cluster) -> None:
    cluster.service("one/web", [A], clusterIP="10.96.0.1")
    cluster.compile()
    for scope in (CLUSTER, WORLD):
        key = layout.ServiceKey(pack("10.96.0.1"), 0, 0, scope).pack()
        assert cluster.table("services").entries[key] == layout.Service().pack()


WRONG = {
    "10.244.1.5": "an address of pods",
    "10.244.2.9": "an address of pods",
    "::": "no address",
    "127.0.0.1": "no address of one host",
    "255.255.255.255": "no address of one host",
    "224.0.0.251": "no address of one host",
    "169.254.1.1": "no address of one host",
}


@pytest.mark.parametrize("address", WRONG)
def test_no_service_takes_an_address_that_is_a_pods_or_no_hosts(cluster: Cluster, address: str) -> None:
    """Else whoever may write Services has what other nodes send to a pod, past the policies of who sends it: the
    cluster's DNS, say; or every node's broadcasts, with which its DHCP lease goes."""
    cluster.service("one/web", [A], clusterIP=address, externalIPs=[address, "192.168.86.77"])
    service = cluster.objects[Ref("Service", "one", "web")]
    assert isinstance(service, Service)
    cluster.objects[service.meta.ref] = replace(service, type="LoadBalancer", load_balancer_ips=(pack(address),))
    problems = cluster.compile().problems
    number = pack(address)
    for raw in cluster.table("services").entries:
        assert layout.ServiceKey.unpack(raw).address != number
    assert cluster.backends("192.168.86.77", 80, scope=WORLD), "its other addresses are served"
    reason = f"{address} is {WRONG[address]}, so it is not served"
    fields = ("spec.clusterIPs", "status.loadBalancer.ingress", "spec.externalIPs")
    assert [problem for problem in problems if "not served" in problem] == [
        f"Service one/web: {field}: {reason}" for field in fields
    ]


OTHER_DEVICE, SECOND_FAMILY = "192.168.99.4", "fd00::22"


@pytest.mark.parametrize("address", ["192.168.86.21", "192.168.86.22", SECOND_FAMILY, OTHER_DEVICE])
@pytest.mark.parametrize("port", [22, 6443, 10250])
def test_no_service_takes_the_ports_by_which_nodes_are_managed(address: str, port: int) -> None:
    """CVE-2020-8554: whoever may write Services would have every SSH session and request to the API server."""
    cluster = with_more_addresses()
    cluster.service("one/web", [A], port=port, externalIPs=[address, "192.168.86.77"])
    problems = cluster.compile().problems
    for scope in (CLUSTER, WORLD):
        assert cluster.backends(address, port, scope=scope) is None
    assert cluster.backends("192.168.86.77", port, scope=WORLD), "nobody's address but the Service's"
    reason = f"{address} {port}/TCP is for the nodes themselves, so it is not served"
    assert problems == (f"Service one/web: spec.ports[0]: {reason}",)


def test_no_node_port_is_one_by_which_nodes_are_managed(cluster: Cluster) -> None:
    ports = [{"name": "a", "port": 80, "nodePort": 22}, {"name": "b", "port": 81, "nodePort": 68, "protocol": "UDP"}]
    cluster.service("one/web", [], type="NodePort", ports=ports)
    assert len(cluster.compile().problems) == 2
    assert cluster.backends("", 22) is None and cluster.backends("", 22, scope=WORLD) is None


@pytest.mark.parametrize("address", [SECOND_FAMILY, OTHER_DEVICE])
def test_the_other_ports_of_any_address_of_a_node_stay_its_own(address: str) -> None:
    cluster = with_more_addresses()
    cluster.service("one/web", [A], externalIPs=[address])
    cluster.compile()
    for scope in (CLUSTER, WORLD):
        assert layout.ServiceKey(pack(address), 80, 6, scope).pack() in cluster.table("services").entries
        assert layout.ServiceKey(pack(address), 0, 0, scope).pack() not in cluster.table("services").entries


def with_more_addresses() -> Cluster:
    """n1 has another device, n2 another family."""
    place = Cluster().place
    cluster = Cluster(place=replace(place, more_addresses=(pack(OTHER_DEVICE),)))
    node: Any = cluster.objects[Ref("Node", "", "n2")]
    cluster.objects[node.meta.ref] = replace(node, addresses=(*node.addresses, pack(SECOND_FAMILY)))
    return cluster


def test_every_kind_of_frontend(cluster: Cluster) -> None:
    cluster.service("one/web", [A])
    cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "one"},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.1",
                "externalIPs": ["192.168.86.77", "192.168.86.22"],
                "ports": [{"port": 80, "nodePort": 30080}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.168.86.18"}]}},
        }
    )
    cluster.compile()
    both = {"10.96.0.1": (True, False), "192.168.86.18": (True, True), "": (True, True)}
    both |= {"192.168.86.77": (False, True), "192.168.86.22": (True, True)}  # from inside, only a node's own address
    for address, scopes in both.items():
        port = 80 if address else 30080
        assert tuple(cluster.backends(address, port, scope=s) is not None for s in (CLUSTER, WORLD)) == scopes, address
    stub = layout.ServiceKey(pack("192.168.86.22"), 0, 0, WORLD).pack()
    assert stub not in cluster.table("services").entries, "a node's other ports stay its own"


@pytest.mark.parametrize(
    ("kind", "reached"),
    [
        ("LoadBalancer", {"10.96.0.1", "192.168.86.77", "192.168.86.18", ""}),
        ("NodePort", {"10.96.0.1", "192.168.86.77", ""}),
        ("ClusterIP", {"10.96.0.1", "192.168.86.77"}),
        ("ExternalName", set()),
    ],
)
def test_what_an_earlier_type_left_is_not_served(cluster: Cluster, kind: str, reached: set[str]) -> None:
    cluster.service("one/web", [A])
    cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "one"},
            "spec": {
                "type": kind,
                "clusterIP": "10.96.0.1",
                "externalIPs": ["192.168.86.77"],
                "ports": [{"port": 80, "nodePort": 30080}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.168.86.18"}]}},
        }
    )
    cluster.compile()
    keys = [layout.ServiceKey.unpack(raw) for raw in cluster.table("services").entries]
    assert {unpack(key.address) if any(key.address) else "" for key in keys} == reached


def test_headless_and_foreign_services_have_no_entry(cluster: Cluster) -> None:
    cluster.service("one/headless", [A], clusterIP="None")
    cluster.service("one/other", [A], clusterIP="10.96.0.2")
    other: Any = cluster.objects[Ref("Service", "one", "other")]
    label = {"service.kubernetes.io/service-proxy-name": "x"}
    cluster.objects[other.meta.ref] = type(other)(
        **{f: getattr(other, f) for f in other.__slots__} | {"meta": Meta(other.meta.ref, label)}
    )
    cluster.compile()
    assert cluster.table("services").entries == {}


def test_without_a_ready_backend_the_entry_refuses(cluster: Cluster) -> None:
    cluster.service("one/web", [], clusterIP="10.96.0.1")
    cluster.compile()
    assert cluster.backends("10.96.0.1", 80) == []


@pytest.mark.parametrize(
    ("conditions", "used", "silent"),
    [
        ([{}, {"ready": False}], {0}, {1}),
        ([{"ready": True}, {"ready": False, "serving": True, "terminating": True}], {0}, set()),
        ([{"ready": False}, {"ready": False, "serving": True, "terminating": True}], {1}, {0}),
        ([{"ready": False, "serving": False, "terminating": True}, {"ready": False}], set(), {0, 1}),
    ],
)
def test_readiness(cluster: Cluster, conditions: list[dict[str, bool]], used: set[int], silent: set[int]) -> None:
    addresses = ["10.244.1.3", "10.244.1.4"]
    cluster.service("one/web", [], clusterIP="10.96.0.1")
    cluster.put(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "namespace": "one", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": [address], "conditions": c} for address, c in zip(addresses, conditions, strict=True)
            ],
            "ports": [{"port": 80}],
        }
    )
    cluster.compile()
    assert shown(cluster.backends("10.96.0.1", 80)) == {addresses[index] for index in used}
    backends = [layout.Backend.unpack(value) for value in cluster.table("backends").entries.values()]
    assert len(backends) == 2, "those without new connections keep their old ones"
    assert {unpack(b.address) for b in backends if b.flags & layout.BACKEND_SILENT} == {addresses[i] for i in silent}


def test_a_backend_serves_if_one_service_says_so(cluster: Cluster) -> None:
    """publishNotReadyAddresses: of one pod an EndpointSlice says that it is ready, and another does not."""
    for name, ready in (("a", False), ("b", True), ("c", False)):
        cluster.service(f"one/{name}", [], clusterIP=f"10.96.0.{ord(name)}")
        cluster.put(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"{name}-1", "namespace": "one", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.244.1.3"], "conditions": {"ready": ready}}],
                "ports": [{"port": 80}],
            }
        )
    cluster.compile()
    (backend,) = map(layout.Backend.unpack, cluster.table("backends").entries.values())
    assert backend.flags == 0


def test_traffic_policies_keep_to_this_node(cluster: Cluster) -> None:
    cluster.service("one/inside", [A, C], clusterIP="10.96.0.1", internalTrafficPolicy="Local")
    cluster.service(
        "one/outside", [A, C], clusterIP="10.96.0.2", externalTrafficPolicy="Local", externalIPs=["192.168.86.70"]
    )
    cluster.compile()
    assert shown(cluster.backends("10.96.0.1", 80)) == {A}
    assert shown(cluster.backends("10.96.0.2", 80)) == {A, "10.244.2.3"}
    assert shown(cluster.backends("192.168.86.70", 80, scope=WORLD)) == {A}


def test_source_ranges_that_are_not_enforced_shut_the_address(cluster: Cluster) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "one"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1",
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
            "ports": [{"port": 80}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.168.86.18"}]}},
    }
    cluster.service("one/web", [A])
    cluster.put(document)
    desired = cluster.compile()
    assert cluster.backends("192.168.86.18", 80, scope=WORLD) == []
    assert shown(cluster.backends("192.168.86.18", 80)) == {A}
    assert desired.problems == (
        "Service one/web: spec.loadBalancerSourceRanges: is not enforced yet, so the addresses are refused from "
        "outside the cluster",
    )


def test_the_older_service_keeps_an_address(cluster: Cluster) -> None:
    cluster.service("one/b", [A], clusterIP="10.96.0.1")
    cluster.service("one/a", [B], clusterIP="10.96.0.1")
    for name, created in (("a", "2025-01-02T00:00:00Z"), ("b", "2025-01-01T00:00:00Z")):
        old: Any = cluster.objects[Ref("Service", "one", name)]
        meta = Meta(old.meta.ref, {}, {}, created)
        cluster.objects[old.meta.ref] = type(old)(**{f: getattr(old, f) for f in old.__slots__} | {"meta": meta})
    desired = cluster.compile()
    assert shown(cluster.backends("10.96.0.1", 80)) == {A}
    assert desired.problems == ("Service one/a: spec.ports[0]: 10.96.0.1 80/TCP is taken by Service one/b",)


def test_sctp_is_said_not_to_be_served(cluster: Cluster) -> None:
    cluster.service("one/web", [A], clusterIP="10.96.0.1", ports=[{"port": 80, "protocol": "SCTP"}])
    assert cluster.compile().problems == ("Service one/web: spec.ports[0]: protocol SCTP is not balanced",)


def test_affinity_travels_in_the_entry(cluster: Cluster) -> None:
    cluster.service("one/web", [A], clusterIP="10.96.0.1", sessionAffinity="ClientIP")
    cluster.compile()
    key = layout.ServiceKey(pack("10.96.0.1"), 80, 6, CLUSTER).pack()
    assert layout.Service.unpack(cluster.table("services").entries[key]).affinity_s == 10800


def test_the_slots_are_the_same_on_every_node(cluster: Cluster) -> None:
    other = Cluster(nodes=3)
    other.service("zero/first", [A, B], clusterIP="10.96.0.9")
    for each in (cluster, other):
        each.service("one/web", [C, B, A], clusterIP="10.96.0.1")
        each.compile()
    assert cluster.backends("10.96.0.1", 80) == other.backends("10.96.0.1", 80)


def test_regions_stay_where_they_are_and_are_never_overwritten_in_use(cluster: Cluster) -> None:
    for number in range(4):
        cluster.service(f"one/s{number}", [A, B], clusterIP=f"10.96.0.{number + 1}")
    cluster.compile()
    before = dict(cluster.table("slots").entries)
    cluster.service("one/s1", [A, B, C], clusterIP="10.96.0.2")
    cluster.compile()
    after = cluster.table("slots").entries
    assert sum(after.get(place) == region for place, region in before.items()) == 3
    assert [change.table for change in cluster.changes] == ["backends", "slots", "services", "slots"]


def test_without_room_for_a_new_region_the_old_backends_stay() -> None:
    cluster = Cluster(sizes={"slots": 100})
    cluster.service("one/web", [A, B], clusterIP="10.96.0.1")
    cluster.compile()
    cluster.service("one/web", [A, B, C], clusterIP="10.96.0.1")
    desired = cluster.compile()
    assert shown(cluster.backends("10.96.0.1", 80)) == {A, B}
    assert "the slots map is full (100): 10.96.0.1 80/TCP keeps the backends that it had" in desired.problems[0]


def test_the_ingress_of_a_node_that_is_gone_serves_nobody(cluster: Cluster) -> None:
    """Its slice stays, as ready as it was last, when a board dies and its Node object is deleted."""
    cluster.service("ingress-nginx/ingress-nginx-controller", [A, C], clusterIP="10.96.0.1")
    ref = Ref("EndpointSlice", "ingress-nginx", "ingress-nginx-controller-1")
    written: Any = cluster.objects[ref]
    managed = written.meta.labels | {"endpointslice.kubernetes.io/managed-by": "netstack-ingress"}
    cluster.objects[ref] = replace(written, meta=replace(written.meta, labels=managed))
    cluster.compile()
    assert shown(cluster.backends("10.96.0.1", 80)) == {"10.244.1.3", "10.244.2.3"}
    del cluster.objects[Ref("Node", "", "n2")]
    cluster.compile()
    assert shown(cluster.backends("10.96.0.1", 80)) == {"10.244.1.3"}


targets = st.lists(st.sampled_from([A, B, C, "10.244.2.4/n2", "10.244.2.5/n2"]), max_size=4, unique=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), targets), min_size=1, max_size=5))
def test_any_history_of_services_is_applied_safely(history: list[dict[str, list[str]]]) -> None:
    cluster = Cluster(sizes={"slots": 500})
    for step in history:
        for name, chosen in step.items():
            cluster.service(f"one/{name}", chosen, clusterIP=f"10.96.0.{ord(name)}")
        cluster.compile()
        for name, chosen in step.items():
            assert shown(cluster.backends(f"10.96.0.{ord(name)}", 80)) == {target.split("/")[0] for target in chosen}


def test_a_node_that_moves_takes_its_backends_along(cluster: Cluster) -> None:
    cluster.service("one/web", [A, C], clusterIP="10.96.0.1")
    cluster.compile()
    cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "n2"},
            "spec": {"podCIDR": "10.244.2.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.86.99"}]},
        }
    )
    cluster.compile()
    nodes = {layout.Backend.unpack(value).node for value in cluster.table("backends").entries.values()}
    assert shown(list(nodes)) == {"192.168.86.21", "192.168.86.99"}


def test_what_the_kernel_holds_counts_whatever_was_made_before(cluster: Cluster) -> None:
    cluster.service("one/web", [A, B], clusterIP="10.96.0.1")
    cluster.compile()
    other = Cluster()
    other.service("two/web", [A, C], clusterIP="10.96.0.2")
    other.compile()
    cluster.before = other.before
    assert cluster.recompile(cluster.memory).tables == cluster.recompile(Memory()).tables


def test_room_that_was_given_back_is_used_at_the_next_attempt() -> None:
    cluster = Cluster(sizes={"slots": 2 * 67})
    for name, address in (("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")):
        cluster.service(f"one/{name}", [A, B], clusterIP=address)
    assert any("the slots map is full" in problem for problem in cluster.compile().problems)
    cluster.remove("Service", "one/a")
    leaving = cluster.recompile(cluster.memory)
    assert any("the slots map is full" in problem for problem in leaving.problems), "what is in use is not overwritten"
    cluster.before = Before(leaving.tables)
    assert cluster.compile().problems == ()


def test_ids_that_collide_are_told_apart_whoever_comes_and_goes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = numbers.hashed
    monkeypatch.setattr(numbers, "hashed", lambda name, bits=32: plain(name, bits) % 16)
    targets = [f"10.244.1.{number}" for number in range(3, 9)]
    for first in (0, 3, 1, 4, 2, 0):  # who comes or goes takes others' numbers, or gives theirs back
        cluster.service("one/web", targets[first:], clusterIP="10.96.0.1")
        cluster.service("one/stays", targets[4:], clusterIP="10.96.0.2")
        cluster.compile()
        assert shown(cluster.backends("10.96.0.2", 80)) == set(targets[4:])


def many(count: int) -> tuple[list[Service], list[EndpointSlice]]:
    template = parse({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {}})
    assert isinstance(template, Service)
    services, slices = [], []
    for number in range(count):
        meta = Meta(Ref("Service", "many", f"s{number}"))
        fields = {name: getattr(template, name) for name in Service.__slots__}
        fields |= {
            "meta": meta,
            "cluster_ips": (pack(f"10.100.{number >> 8}.{number & 255}"),),
            "ports": (ServicePort("", "TCP", 80, 80, 0),),
        }
        services.append(Service(**fields))
        addresses = [pack(f"10.{244 + part}.{number >> 8}.{number & 255}") for part in range(3)]
        endpoints = tuple(Endpoint((address,), True, True, False, "n1", None) for address in addresses)
        slices.append(
            EndpointSlice(Meta(Ref("EndpointSlice", "many", f"s{number}")), f"s{number}", endpoints, (("", "TCP", 80),))
        )
    return services, slices


def test_a_thousand_services_compile_fast_enough() -> None:
    services, slices = many(1000)
    nodes = {"n1": pack("192.168.86.21")}
    began = time.process_time()
    around = Around(nodes, "n1", frozenset(), frozenset(nodes.values()), frozenset())
    tables = Compiler().compile(tuple(services), tuple(slices), around, ServiceTables())
    assert time.process_time() - began < 2.0
    assert len(tables.slots.entries) == 1000
