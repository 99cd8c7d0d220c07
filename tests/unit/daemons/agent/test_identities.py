"""Who is who."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from instruments.cluster import Cluster
from netstack.agent import numbers
from netstack.agent.identities import INGRESS, LABELS_BASE, PREFIX_BASE, LocalEndpoint
from netstack.core.address import ANY, pack
from netstack.core.ref import Ref
from netstack.kernel import layout


def entry(cluster: Cluster, prefix: str, bits: int = 128) -> layout.Identity:
    return layout.Identity.unpack(cluster.table("identities").entries[layout.PrefixKey(bits, pack(prefix)).pack()])


def test_pods_with_the_same_labels_are_one_identity_on_every_node() -> None:
    one, two = Cluster(), Cluster(nodes=3)
    two.pod("zoo/other", {"x": "y"})
    for cluster in (one, two):
        cluster.pod("default/a", {"app": "web"}, address="10.244.1.9")
        cluster.pod("default/b", {"app": "web"}, node="n2", address="10.244.2.9")
        cluster.pod("default/c", {"app": "db"}, node="n2", address="10.244.2.10")
        cluster.compile()
    assert entry(one, "10.244.1.9").identity == entry(one, "10.244.2.9").identity == entry(two, "10.244.2.9").identity
    assert entry(one, "10.244.2.9").identity != entry(one, "10.244.2.10").identity
    assert LABELS_BASE <= entry(one, "10.244.2.9").identity < PREFIX_BASE
    assert entry(one, "10.244.2.9").node == pack("192.168.86.22")


def test_namespace_and_its_labels_belong_to_a_pods_labels() -> None:
    cluster = Cluster()
    cluster.pod("one/a", address="10.244.1.9")
    cluster.pod("two/a", address="10.244.1.10")
    cluster.compile()
    first = entry(cluster, "10.244.1.9").identity
    assert first != entry(cluster, "10.244.1.10").identity
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one", "labels": {"team": "red"}}})
    cluster.compile()
    assert entry(cluster, "10.244.1.9").identity != first


def test_nodes_pod_ranges_and_the_rest() -> None:
    cluster = Cluster()
    cluster.compile()
    assert entry(cluster, "192.168.86.21") == layout.Identity(layout.IDENTITY_HOST, 0, pack("192.168.86.21"))
    assert entry(cluster, "192.168.86.22") == layout.Identity(layout.IDENTITY_REMOTE_NODE, 0, pack("192.168.86.22"))
    assert entry(cluster, "10.244.2.0", 120) == layout.Identity(layout.IDENTITY_UNMANAGED, 0, pack("192.168.86.22"))
    assert cluster.desired is not None
    assert cluster.desired.identities.at(pack("8.8.8.8")) == layout.IDENTITY_WORLD


def test_the_own_node_is_known_without_its_object() -> None:
    cluster = Cluster(nodes=0)
    cluster.compile()
    assert entry(cluster, "192.168.86.21").identity == layout.IDENTITY_HOST
    assert entry(cluster, "10.244.1.0", 120).identity == layout.IDENTITY_UNMANAGED


@pytest.mark.parametrize(
    ("address", "identity", "entities"),
    [
        ("192.168.86.22", layout.IDENTITY_KUBE_APISERVER, {"kube-apiserver", "remote-node", "cluster"}),
        ("192.168.86.21", layout.IDENTITY_HOST, {"host", "cluster", "kube-apiserver"}),
    ],
)
def test_the_api_server_on_a_node(address: str, identity: int, entities: set[str]) -> None:
    cluster = Cluster()
    cluster.service("default/kubernetes", [address], port=443, target_port=6443, clusterIP="10.96.0.1")
    desired = cluster.compile()
    assert entry(cluster, address).identity == identity
    (peer,) = [peer for peer in desired.identities.peers if peer.number == identity]
    assert peer.entities == entities


def test_the_api_server_outside_the_cluster_is_world_and_of_the_cluster_and_itself() -> None:
    cluster = Cluster()
    cluster.service("default/kubernetes", ["192.168.86.99"], port=443, target_port=6443, clusterIP="10.96.0.1")
    desired = cluster.compile()
    found = entry(cluster, "192.168.86.99")
    assert found.node == ANY
    (peer,) = [peer for peer in desired.identities.peers if peer.number == found.identity]
    assert peer.entities == {"world", "world-ipv4", "cluster", "kube-apiserver"}


def test_pods_of_the_hosts_network_and_finished_ones_have_no_identity() -> None:
    cluster = Cluster()
    for name, spec, phase in (("host", {"hostNetwork": True}, "Running"), ("done", {}, "Succeeded")):
        cluster.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "one", "labels": {"app": name}},
                "spec": {"nodeName": "n2", **spec},
                "status": {"phase": phase, "podIP": "192.168.86.22" if name == "host" else "10.244.2.7"},
            }
        )
    cluster.compile()
    assert entry(cluster, "192.168.86.22").identity == layout.IDENTITY_REMOTE_NODE
    assert layout.PrefixKey(128, pack("10.244.2.7")).pack() not in cluster.table("identities").entries


def test_the_address_of_a_pod_whose_node_is_unknown_is_nobodys() -> None:
    """Whoever spoke with it, by whatever door, would be taken for the pod."""
    cluster = Cluster()
    cluster.pod("one/far", {"app": "far"}, node="n9", address="10.0.0.9")
    cluster.pod("one/near", {"app": "near"}, node="n2", address="10.0.0.2")
    found = cluster.compile().identities
    assert found.at(pack("10.0.0.9")) == layout.IDENTITY_WORLD
    assert {peer.labels.get("app") for peer in found.peers if peer.number == found.at(pack("10.0.0.2"))} == {"near"}


def test_a_pod_of_this_node_without_an_endpoint_has_this_nodes_door() -> None:
    """Also before this node's own object is there."""
    cluster = Cluster()
    old = {"name": "old", "namespace": "one", "labels": {"app": "old"}}
    status = {"phase": "Running", "podIP": "10.0.0.9"}
    cluster.put({"apiVersion": "v1", "kind": "Pod", "metadata": old, "spec": {"nodeName": "n1"}, "status": status})
    cluster.remove("Node", "n1")
    cluster.compile()
    assert entry(cluster, "10.0.0.9").node == pack("192.168.86.21")


def test_of_two_pods_with_one_address_the_newer_has_it_and_a_local_endpoint_before_all() -> None:
    cluster = Cluster()
    cluster.pod("one/old", {"app": "old"}, node="n2", address="10.244.2.7", creationTimestamp="2025-01-01T00:00:00Z")
    cluster.pod("one/new", {"app": "new"}, node="n2", address="10.244.2.7", creationTimestamp="2025-01-02T00:00:00Z")
    cluster.pod("one/mine", {"app": "mine"}, address="10.244.1.7")
    cluster.pod(
        "one/claims", {"app": "claims"}, node="n2", address="10.244.1.7", creationTimestamp="2026-01-01T00:00:00Z"
    )
    desired = cluster.compile()
    names = {peer.number: peer.labels.get("app") for peer in desired.identities.peers}
    assert names[entry(cluster, "10.244.2.7").identity] == "new"
    assert names[entry(cluster, "10.244.1.7").identity] == "mine"


def test_an_endpoint_whose_object_is_gone_keeps_its_labels() -> None:
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"}, address="10.244.1.7")
    cluster.compile()
    cluster.remove("Pod", "one/a")
    cluster.compile()
    assert entry(cluster, "10.244.1.7").identity != layout.IDENTITY_UNMANAGED
    assert cluster.desired is not None
    assert cluster.desired.identities.of_endpoint[1].labels["app"] == "a"


def test_an_endpoint_whose_namespace_is_gone_keeps_its_namespaces_labels_and_its_ports() -> None:
    """Both were deleted by force, and the sandbox runs on."""
    cluster = Cluster()
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "one", "labels": {"team": "red"}}})
    cluster.pod("one/a", {"app": "a"}, ports=[("web", "TCP", 80)])
    ref = Ref("Pod", "one", "a")
    before = cluster.compile().identities.of_endpoint[1]
    seen = {"namespace_labels": {"team": "red"}, "ports": (("web", "TCP", 80),)}
    cluster.endpoints[ref] = replace(cluster.endpoints[ref], labels={"app": "a"}, service_account="default", **seen)
    del cluster.objects[Ref("Namespace", "", "one")]
    assert "io.cilium.k8s.namespace.labels.team" not in cluster.compile().identities.of_endpoint[1].labels
    del cluster.objects[ref]
    assert cluster.compile().identities.of_endpoint[1] == before


@pytest.mark.parametrize(
    ("told", "object_has", "label"),
    [("u1", "u2", "old"), ("u1", "u1", "new"), ("h1", "u2", "new"), ("", "u2", "new"), ("u1", "", "new")],
)
def test_an_endpoint_takes_no_label_of_another_pod_with_its_name(told: str, object_has: str, label: str) -> None:
    """One of a StatefulSet that was deleted by force: its sandbox runs on. A runtime names a static pod by its hash."""
    cluster = Cluster()
    cluster.pod("one/a-0", {"app": "old"}, address="10.244.1.7")
    ref = Ref("Pod", "one", "a-0")
    cluster.endpoints[ref] = replace(cluster.endpoints[ref], uid=told)
    its = {"uid": object_has, "annotations": {"kubernetes.io/config.hash": "h1"}}
    cluster.pod("one/a-0", {"app": "new"}, node="n2", address="10.244.2.7", ports=[("web", "TCP", 80)], **its)
    peer = cluster.compile().identities.of_endpoint[1]
    assert (peer.labels["app"], bool(peer.ports)) == (label, label == "new")


def test_the_ingress_endpoints_of_all_nodes_bear_their_services_labels() -> None:
    cluster = Cluster()
    cluster.service("ingress-nginx/ingress-nginx-controller", ["10.244.2.2/n2"], selector={"app": "ingress-nginx"})
    ref = Ref("EndpointSlice", "ingress-nginx", "ingress-nginx-controller-1")
    desired = cluster.compile()
    assert not any(INGRESS in peer.labels for peer in desired.identities.peers), "only slices of our own ingress count"
    cluster.put(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": ref.name,
                "namespace": ref.namespace,
                "labels": {
                    "kubernetes.io/service-name": "ingress-nginx-controller",
                    "endpointslice.kubernetes.io/managed-by": "netstack-ingress",
                },
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.2.2"], "nodeName": "n2"}],
            "ports": [{"port": 80}],
        }
    )
    desired = cluster.compile()
    (peer,) = [peer for peer in desired.identities.peers if INGRESS in peer.labels]
    assert peer.entities == {"cluster", "ingress"}
    assert peer.labels["app"] == "ingress-nginx"
    assert entry(cluster, "10.244.2.2") == layout.Identity(peer.number, 0, pack("192.168.86.22"))
    del cluster.objects[Ref("Node", "", "n2")]
    desired = cluster.compile()
    assert not any(INGRESS in peer.labels for peer in desired.identities.peers), "the next with its address is not one"


def test_collisions_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = numbers.hashed
    monkeypatch.setattr(numbers, "hashed", lambda name, bits=32: real(name, bits) if "\0" in name else 5)
    cluster = Cluster()
    cluster.pod("one/a", {"app": "a"})
    cluster.pod("one/b", {"app": "b"})
    desired = cluster.compile()
    assert any("collides with" in problem for problem in desired.problems)
    assert entry(cluster, "10.244.1.3").identity != entry(cluster, "10.244.1.4").identity


def test_a_pod_cannot_label_itself_into_another_namespace_or_into_the_ingress() -> None:
    cluster = Cluster()
    forged = {
        "io.kubernetes.pod.namespace": "kube-system",
        "io.cilium.k8s.namespace.labels.team": "red",
        "io.cilium.k8s.policy.serviceaccount": "admin",
        INGRESS: "",
    }
    cluster.pod("one/forger", {"app": "a", **forged}, address="10.244.1.7")
    cluster.pod("one/honest", {"app": "a"}, address="10.244.1.8")
    cluster.compile()
    assert entry(cluster, "10.244.1.7").identity == entry(cluster, "10.244.1.8").identity


@pytest.mark.parametrize("key", ["netstack.io/zone", "io.cilium.zone", "io.kubernetes.pod.zone"])
def test_a_policy_may_select_by_any_label_of_a_pods_own(key: str) -> None:
    """Else a policy that is in force selects nobody, and what it shall deny is open."""
    cluster = Cluster()
    cluster.pod("one/shut", {key: "shut"})
    cluster.pod("one/friend", {key: "friend"}, node="n2")
    cluster.pod("one/other", {key: "other"}, node="n2")
    allowed = {"from": [{"podSelector": {"matchLabels": {key: "friend"}}}]}
    spec = {"podSelector": {"matchLabels": {key: "shut"}}, "ingress": [allowed]}
    metadata = {"name": "p", "namespace": "one"}
    cluster.put({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
    cluster.compile()
    assert cluster.verdict("one/friend", "one/shut", 80) == "ALLOWED"
    assert cluster.verdict("one/other", "one/shut", 80) == "DEFAULT_DENY"


def test_the_own_ingress_endpoint_is_the_same_identity_as_those_of_other_nodes() -> None:
    cluster = Cluster()
    cluster.service("ingress-nginx/ingress-nginx-controller", ["10.244.2.2/n2"], selector={"app": "ingress-nginx"})
    ref = Ref("EndpointSlice", "ingress-nginx", "ingress-nginx-controller-1")
    foreign: Any = cluster.objects[ref]
    managed = {**foreign.meta.labels, "endpointslice.kubernetes.io/managed-by": "netstack-ingress"}
    cluster.objects[ref] = replace(foreign, meta=replace(foreign.meta, labels=managed))
    pod = Ref("Pod", "ingress-nginx", "netstack-ingress")
    cluster.endpoints[pod] = LocalEndpoint(1, pack("10.244.1.2"), pod, 7, bytes(6), bytes(6), ingress=True)
    cluster.pod("ingress-nginx/netstack-ingress", {"app": "own"}, node="n2", ports=[("web", "TCP", 80)])
    desired = cluster.compile()
    assert entry(cluster, "10.244.1.2").identity == entry(cluster, "10.244.2.2").identity
    assert "ingress" in desired.identities.of_endpoint[1].entities
