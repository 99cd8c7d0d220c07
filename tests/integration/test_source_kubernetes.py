"""The `kubernetes` source and the statuses on a real API server, with the product's own definitions and access rights.

Faults that a real server cannot be asked for (garbage, half answers, 429) are in tests/unit/daemons/source, on a
scripted one.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from instruments.api_objects import namespace, policy, secret, service
from instruments.source_probe import Watched, wait_for
from lab.controlplane import ControlPlane, skip_reason
from netstack.agent.__main__ import WANTS as AGENT
from netstack.announcer.__main__ import WANTS as ANNOUNCER
from netstack.cli.cluster import main
from netstack.core.ref import Ref
from netstack.ingress.__main__ import WANTS as INGRESS
from netstack.source.statusapi import StatusApi

pytestmark = pytest.mark.root

FILES = Path(__file__).parents[2] / "roles/agent/files"
USER, GROUPS = "netstack:node:n1", ["netstack:nodes"]
A = Ref("Service", "ns", "a")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    why_not = skip_reason()
    if why_not is not None:
        pytest.skip(why_not)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    flags = ["--etcd-compaction-interval=1s", "--watch-cache=false"]
    with ControlPlane(tmp_path_factory.mktemp("plane"), port=port, api_server_flags=flags) as running:
        yield running


@dataclass
class Cluster:
    """The control plane with nothing in it but what a test puts there."""

    plane: ControlPlane
    kubeconfig: Path

    def __post_init__(self) -> None:
        self.client = self.plane.client()
        self.install()
        self.client.apply(namespace("ns"))

    def install(self) -> int:
        admin = self.plane.user("admin") / "kubeconfig"
        return main(["install", "--kubeconfig", str(admin), str(FILES / "crds"), str(FILES / "rbac.yaml")])

    def put(self, *raws: Any) -> None:
        """Addresses of Services are the API server's to give."""
        for raw in raws:
            for name in ("clusterIP", "clusterIPs"):
                raw.get("spec", {}).pop(name, None)
        self.client.apply(list(raws))

    def status(self, ref: Ref) -> dict[str, Any]:
        found = self.client.get(ref.kind, ref.namespace, ref.name)
        return dict((found or {}).get("status") or {})

    def empty(self) -> None:
        for kind in ("Service", "EndpointSlice", "Secret", "Ingress", "CiliumNetworkPolicy", "IPAddressPool"):
            for item in self.client.list(kind, "ns"):
                self.client.request("DELETE", self.client.resource(kind).path("ns", item["metadata"]["name"]))


@pytest.fixture
def cluster(plane: ControlPlane) -> Iterator[Cluster]:
    plane.kubeconfig("admin", ["system:masters"])
    made = Cluster(plane, plane.kubeconfig(USER, GROUPS))
    yield made
    plane.start()
    made.install()
    made.empty()


def named(watched: Watched, kind: str) -> list[str]:
    return sorted(ref.name for ref in watched.source.snapshot().objects if ref.kind == kind and ref.namespace == "ns")


def shows(watched: Watched, kind: str, *names: str) -> None:
    wait_for(lambda: watched.snapshots and named(watched, kind) == sorted(names), f"{kind} {names}")


@pytest.mark.parametrize("wants", [AGENT, ANNOUNCER, INGRESS], ids=["agent", "announcer", "ingress"])
def test_each_daemon_may_read_what_it_asks_for(cluster: Cluster, tmp_path: Path, wants: Any) -> None:
    cluster.put(service("a"), policy("p"), secret("tls"), secret("opaque", "Opaque"))
    with Watched(cluster.kubeconfig, tmp_path / "good", wants) as source:
        source.connected()
        shows(source, "Service", "a")
        kinds = {want.kind for want in wants}
        assert named(source, "Secret") == (["tls"] if "Secret" in kinds else [])
        assert named(source, "CiliumNetworkPolicy") == (["p"] if "CiliumNetworkPolicy" in kinds else [])
        assert source.source.report()["problems"] == [] and source.source.snapshot().broken == ()


def test_an_outage_under_churn_is_caught_up_with(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(*(service(f"s{i}", f"10.96.7.{i}") for i in range(1, 30)))
    with Watched(cluster.kubeconfig, tmp_path / "good", ANNOUNCER) as source:
        shows(source, "Service", *(f"s{i}" for i in range(1, 30)))
        for _ in range(2):
            cluster.plane.kill()
            source.problem("Service")
            cluster.plane.start()
        cluster.client = cluster.plane.client()
        cluster.client.delete("Service", "ns", "s7")
        cluster.put(service("new", "10.96.7.99"))
        left = {f"s{i}" for i in range(1, 30)} - {"s7"}
        shows(source, "Service", "new", *left)
        source.connected()
    seen = [{ref.name for ref in snapshot.objects if ref.kind == "Service"} for snapshot in source.snapshots]
    assert all(left <= names for names in seen), "what was there throughout is in every snapshot"


def test_a_compacted_past_is_listed_anew(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(service("a"))
    with Watched(cluster.kubeconfig, tmp_path / "good", INGRESS) as source:
        shows(source, "Service", "a")
        source.connected()
        before = len(source.snapshots)
        for reflector in source.source._reflectors:
            reflector._version = "1"  # as after an hour away
            reflector._history = type(reflector._history)(reflector._history.uid, 1)  # type: ignore[union-attr, misc]
            reflector._client.abort()
        wait_for(lambda: all(int(r._version or 0) > 1 and r.connected for r in source.source._reflectors))
        assert len(source.snapshots) == before, "nothing had changed"


def test_another_history_is_followed(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(service("a"))
    with Watched(cluster.kubeconfig, tmp_path / "good", INGRESS) as source:
        shows(source, "Service", "a")
        cluster.plane.wipe()
        fresh = Cluster(cluster.plane, cluster.kubeconfig)
        fresh.put(service("b"))
        shows(source, "Service", "b")
        cluster.client = fresh.client


def test_rights_are_taken_away_and_given_back(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(service("a"))
    with Watched(cluster.kubeconfig, tmp_path / "good", INGRESS) as source:
        shows(source, "Service", "a"), source.connected()
        cluster.client.delete("ClusterRoleBinding", "", "netstack-nodes")
        cluster.plane.kill(), cluster.plane.start()
        assert "403 Forbidden" in source.problem("Service")
        cluster.client = cluster.plane.client()
        cluster.put(service("b"))
        assert named(source, "Service") == ["a"]
        cluster.install()
        shows(source, "Service", "a", "b")


def test_an_expired_certificate_is_said_and_a_renewed_one_taken_up(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(service("a"))
    cluster.plane.kubeconfig(USER, GROUPS, valid_s=3)
    began = time.monotonic()
    with Watched(cluster.kubeconfig, tmp_path / "good", INGRESS) as source:
        shows(source, "Service", "a")
        wait_for(lambda: time.monotonic() > began + 4)
        cluster.plane.kill(), cluster.plane.start()
        wait_for(lambda: "401 Unauthorized" in source.problem("Service"))
        assert named(source, "Service") == ["a"]
        cluster.plane.kubeconfig(USER, GROUPS)
        cluster.client = cluster.plane.client()
        cluster.put(service("b"))
        shows(source, "Service", "a", "b")


def test_an_uninstalled_definition_opens_nothing(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(policy("p"))
    with Watched(cluster.kubeconfig, tmp_path / "good", AGENT) as source:
        shows(source, "CiliumNetworkPolicy", "p"), source.connected()
        cluster.client.delete("CustomResourceDefinition", "", "ciliumnetworkpolicies.cilium.io")
        wait_for(lambda: "is missing" in source.problem("CiliumNetworkPolicy"))
        assert named(source, "CiliumNetworkPolicy") == ["p"]
        cluster.install()
        shows(source, "CiliumNetworkPolicy")
        cluster.client = cluster.plane.client()
        cluster.put(policy("q"))
        shows(source, "CiliumNetworkPolicy", "q")
        cluster.client.delete("CiliumNetworkPolicy", "ns", "q")
        shows(source, "CiliumNetworkPolicy")


def condition(kind: str, status: str = "True") -> dict[str, Any]:
    at = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": kind, "message": "", "lastTransitionTime": at}


def test_statuses_reach_their_subresources_and_are_written_once(cluster: Cluster, tmp_path: Path) -> None:
    pool = {
        "apiVersion": "metallb.io/v1beta1",
        "kind": "IPAddressPool",
        "metadata": {"name": "pool", "namespace": "ns"},
        "spec": {"addresses": ["10.0.0.5-10.0.0.9"]},
    }
    cluster.put(service("a", type="LoadBalancer"), policy("p"), pool)
    ingress = [{"ip": "10.0.0.5", "ipMode": "VIP"}]
    balanced = {"loadBalancer": {"ingress": ingress}, "conditions": [condition("Allocated")]}
    l2 = Ref("ServiceL2Status", "ns", "l2-n1-a")
    wanted: dict[Ref, Any] = {
        A: balanced,
        Ref("IPAddressPool", "ns", "pool"): {"assignedIPv4": 1, "availableIPv4": 4, "assignedIPv6": 0},
        l2: {"node": "n1", "serviceName": "a", "serviceNamespace": "ns", "interfaces": [{"name": "eth0"}]},
    }
    with Watched(cluster.kubeconfig, tmp_path / "good", (*ANNOUNCER,)) as source:
        source.connected()
        api = StatusApi(source.source, "n1", patience_s=lambda: 0.0, draw=lambda low, high: low / 10)
        for ref, status in wanted.items():
            api.put(ref, "", status)
        for kind in {ref.kind for ref in wanted}:
            api.keep(kind, wanted)
        for ref, status in wanted.items():
            wait_for(lambda: cluster.status(ref) == status, f"the status of {ref}")  # noqa: B023
        version = cluster.client.get("Service", "ns", "a")["metadata"]["resourceVersion"]  # type: ignore[index]
        wait_for(lambda: source.source.said(A) == (version, balanced), "the watch to show it")
        later = {**balanced, "conditions": [{**condition("Allocated"), "lastTransitionTime": "2026-01-02T00:00:00Z"}]}
        api.put(A, "", later)
        api.delete(l2)
        wait_for(lambda: cluster.client.get(l2.kind, l2.namespace, l2.name) is None, "the ServiceL2Status to go")
        assert cluster.client.get("Service", "ns", "a")["metadata"]["resourceVersion"] == version  # type: ignore[index]
        api.keep("Service", ())
        wait_for(lambda: not cluster.status(A).get("conditions") and not cluster.status(A)["loadBalancer"])
        assert api.report() == []
        api.close()


def test_a_policy_and_an_ingress_are_told_what_became_of_them(cluster: Cluster, tmp_path: Path) -> None:
    backend = {"service": {"name": "a", "port": {"number": 80}}}
    site = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "site", "namespace": "ns"},
        "spec": {"ingressClassName": "nginx", "defaultBackend": backend},
    }
    cluster.put(policy("p"), site)
    wants = (*AGENT, next(want for want in INGRESS if want.kind == "Ingress"))
    refs = Ref("CiliumNetworkPolicy", "ns", "p"), Ref("Ingress", "ns", "site")
    with Watched(cluster.kubeconfig, tmp_path / "good", wants) as source:
        source.connected()
        api = StatusApi(source.source, "n1", patience_s=lambda: 0.0, draw=lambda low, high: low / 10)
        plain = {name: text for name, text in condition("Valid").items() if name != "lastTransitionTime"}
        api.put(refs[0], "", {"conditions": [plain]})
        api.put(refs[1], "", {"conditions": [condition("Accepted")], "loadBalancer": {"ingress": [{"ip": "10.0.0.5"}]}})
        wait_for(lambda: cluster.status(refs[0]).get("conditions") == [plain])
        wait_for(lambda: cluster.status(refs[1]).get("loadBalancer") == {"ingress": [{"ip": "10.0.0.5"}]})
        assert api.report() == []
        api.close()


def test_the_ingress_slice_stands_for_its_service_and_goes_with_it(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(service("a"))
    uid = cluster.client.get("Service", "ns", "a")["metadata"]["uid"]  # type: ignore[index]
    owner = {"apiVersion": "v1", "kind": "Service", "name": "a", "uid": uid}
    labels = {"kubernetes.io/service-name": "a", "endpointslice.kubernetes.io/managed-by": "netstack-ingress"}
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "a-n1", "namespace": "ns", "labels": labels, "ownerReferences": [owner]},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": True}, "nodeName": "n1"}],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
    }
    with Watched(cluster.kubeconfig, tmp_path / "good", INGRESS) as source:
        source.connected()
        api = StatusApi(source.source, "n1", patience_s=lambda: 0.0, draw=lambda low, high: low / 10)
        api.place(document)
        wait_for(lambda: "a-n1" in named(source, "EndpointSlice"))
        api.place({**document, "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": False}}]})
        shown = Ref("EndpointSlice", "ns", "a-n1")
        wait_for(lambda: not source.source.shown(shown).endpoints[0].ready)  # type: ignore[union-attr]
        api.close()
        cluster.client.delete("Service", "ns", "a")
        wait_for(lambda: named(source, "EndpointSlice") == [], "the garbage collector")
