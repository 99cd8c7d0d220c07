"""The `kubernetes` source and the statuses on a real API server, with the product's own definitions and access rights.

Faults that a real server cannot be asked for (garbage, half answers, 429) are in tests/unit/daemons/source, on a
scripted one.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from instruments.api_objects import namespace, policy, secret, service
from instruments.plane import control_plane
from instruments.source_probe import Watched, wait_for
from lab.controlplane import ControlPlane
from netstack.agent.__main__ import WANTS as AGENT
from netstack.announcer.__main__ import WANTS as ANNOUNCER
from netstack.cli import token
from netstack.cli.cluster import main
from netstack.core.ref import Ref
from netstack.ingress.wants import wants
from netstack.source.client import Client as SourceClient
from netstack.source.client import Refused
from netstack.source.credentials import Credentials
from netstack.source.parse import reference
from netstack.source.statusapi import StatusApi

pytestmark = pytest.mark.root

FILES = Path(__file__).parents[2] / "roles/agent/files"
NODE, NODES = "netstack:node:n1", "netstack:nodes"
INGRESS_USER, INGRESSES = "netstack:ingress:n1", "netstack:ingress"
INGRESS = wants()
A = Ref("Service", "ns", "a")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    flags = ["--etcd-compaction-interval=1s", "--watch-cache=false"]
    with control_plane(tmp_path_factory.mktemp("plane"), flags) as running:
        yield running


@dataclass
class Cluster:
    """The control plane with nothing in it but what a test puts there."""

    plane: ControlPlane
    kubeconfig: Path
    ingress: Path
    """The ingress's kubeconfig."""

    def __post_init__(self) -> None:
        self.client = self.plane.client()
        self.install()
        self.client.apply(namespace("ns"))

    @property
    def admin(self) -> str:
        return str(self.plane.user("admin") / "kubeconfig")

    def install(self, *secrets: str) -> int:
        narrowed = [word for scope in secrets for word in ("--secrets", scope)]
        return main(["install", "--kubeconfig", self.admin, *narrowed, str(FILES / "crds"), str(FILES / "rbac.yaml")])

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
    made = Cluster(plane, plane.kubeconfig(NODE, [NODES]), plane.kubeconfig(INGRESS_USER, [INGRESSES]))
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
    kubeconfig = cluster.ingress if wants is INGRESS else cluster.kubeconfig
    with Watched(kubeconfig, tmp_path / "good", wants) as source:
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
    with Watched(cluster.ingress, tmp_path / "good", INGRESS) as source:
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
    with Watched(cluster.ingress, tmp_path / "good", INGRESS) as source:
        shows(source, "Service", "a")
        cluster.plane.wipe()
        fresh = Cluster(cluster.plane, cluster.kubeconfig, cluster.ingress)
        fresh.put(service("b"))
        shows(source, "Service", "b")
        cluster.client = fresh.client


def test_rights_are_taken_away_and_given_back(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(service("a"))
    with Watched(cluster.ingress, tmp_path / "good", INGRESS) as source:
        shows(source, "Service", "a"), source.connected()
        cluster.client.delete("ClusterRoleBinding", "", "netstack-ingress")
        cluster.plane.kill(), cluster.plane.start()
        assert "403 Forbidden" in source.problem("Service")
        cluster.client = cluster.plane.client()
        cluster.put(service("b"))
        assert named(source, "Service") == ["a"]
        cluster.install()
        shows(source, "Service", "a", "b")


def test_an_expired_certificate_is_said_and_a_renewed_one_taken_up(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(service("a"))
    cluster.plane.kubeconfig(INGRESS_USER, [INGRESSES], valid_s=3)
    began = time.monotonic()
    with Watched(cluster.ingress, tmp_path / "good", INGRESS) as source:
        shows(source, "Service", "a")
        wait_for(lambda: time.monotonic() > began + 4)
        cluster.plane.kill(), cluster.plane.start()
        wait_for(lambda: "401 Unauthorized" in source.problem("Service"))
        assert named(source, "Service") == ["a"]
        cluster.plane.kubeconfig(INGRESS_USER, [INGRESSES])
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
            api.put(ref, status)
        for kind in {ref.kind for ref in wanted}:
            api.keep(kind, wanted)
        for ref, status in wanted.items():
            wait_for(lambda: cluster.status(ref) == status, f"the status of {ref}")  # noqa: B023
        version = cluster.client.get("Service", "ns", "a")["metadata"]["resourceVersion"]  # type: ignore[index]
        wait_for(lambda: source.source.said(A) == (version, balanced), "the watch to show it")
        later = {**balanced, "conditions": [{**condition("Allocated"), "lastTransitionTime": "2026-01-02T00:00:00Z"}]}
        api.put(A, later)
        api.delete(l2)
        wait_for(lambda: cluster.client.get(l2.kind, l2.namespace, l2.name) is None, "the ServiceL2Status to go")
        assert cluster.client.get("Service", "ns", "a")["metadata"]["resourceVersion"] == version  # type: ignore[index]
        api.keep("Service", ())
        wait_for(lambda: not cluster.status(A).get("conditions") and not cluster.status(A)["loadBalancer"])
        assert api.report() == []
        api.close()


@contextmanager
def writer(kubeconfig: Path, folder: Path, wants: Any, node: str = "n1") -> Iterator[StatusApi]:
    """A daemon's statuses, once it is in step."""
    with Watched(kubeconfig, folder, wants) as source:
        source.connected()
        api = StatusApi(source.source, node, patience_s=lambda: 0.0, draw=lambda low, high: low / 10)
        yield api
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
    refs = Ref("CiliumNetworkPolicy", "ns", "p"), Ref("Ingress", "ns", "site")
    with writer(cluster.kubeconfig, tmp_path / "agent", AGENT) as api:
        plain = {name: text for name, text in condition("Valid").items() if name != "lastTransitionTime"}
        api.put(refs[0], {"conditions": [plain]})
        wait_for(lambda: cluster.status(refs[0]).get("conditions") == [plain])
    with writer(cluster.ingress, tmp_path / "ingress", INGRESS) as api:
        api.put(refs[1], {"conditions": [condition("Accepted")], "loadBalancer": {"ingress": [{"ip": "10.0.0.5"}]}})
        wait_for(lambda: cluster.status(refs[1]).get("loadBalancer") == {"ingress": [{"ip": "10.0.0.5"}]})


def described(cluster: Cluster, ref: Ref) -> list[tuple[str, str, str]]:
    """What `kubectl describe` lists below an object, by its name, namespace, kind and uid: type, reason, note."""
    found = cluster.client.get(ref.kind, ref.namespace, ref.name) or {}
    regarding = {"name": ref.name, "namespace": ref.namespace, "kind": ref.kind, "uid": found["metadata"]["uid"]}
    selector = ",".join(f"involvedObject.{name}={value}" for name, value in regarding.items() if value)
    path = f"/api/v1/namespaces/{ref.namespace or 'default'}/events?{urlencode({'fieldSelector': selector})}"
    return [(e["type"], e["reason"], e["message"]) for e in cluster.client.request("GET", path)["items"]]


def test_four_nodes_tell_of_a_refused_object_once(cluster: Cluster, tmp_path: Path) -> None:
    everywhere = {**policy("all", "CiliumClusterwideNetworkPolicy"), "metadata": {"name": "all"}}
    old = policy("old", "NetworkPolicy")
    pool = {
        "apiVersion": "metallb.io/v1beta1",
        "kind": "IPAddressPool",
        "metadata": {"name": "pool", "namespace": "ns"},
        "spec": {"addresses": ["10.0.0.5-10.0.0.9"]},
    }
    cluster.put(policy("p"), everywhere, {**old, "spec": {"podSelector": {}}}, pool)
    told = [reference(item) for item in (policy("p"), everywhere, old, pool)]
    wrong = {"conditions": [{**condition("Valid", "False"), "reason": "Refused", "message": "spec: is wrong"}]}
    wants = (*AGENT, next(want for want in ANNOUNCER if want.kind == "IPAddressPool"))
    with ExitStack() as nodes:
        apis = [
            nodes.enter_context(writer(cluster.kubeconfig, tmp_path / n, wants, n)) for n in ("n1", "n2", "n3", "n4")
        ]
        for api in apis:
            for ref in told:
                api.put(ref, wrong)
        for ref in told:
            wait_for(lambda: described(cluster, ref) == [("Warning", "Refused", "spec: is wrong")], str(ref))  # noqa: B023
        for api in apis:  # each has had its turn when its thread has told of everything
            wait_for(lambda: len(api._due) == len(told) and min(api._due.values()) > time.monotonic() + 60)  # noqa: B023
        assert all(len(described(cluster, ref)) == 1 for ref in told)


def listed(cluster: Cluster, credentials: Credentials | Path, path: str) -> list[str] | int:
    """Names that credentials (or a kubeconfig) may list, or the code of the refusal."""
    client = SourceClient(credentials if isinstance(credentials, Credentials) else Credentials(str(credentials)))
    try:
        return sorted(item["metadata"]["name"] for item in client.get(path)["items"])
    except Refused as error:
        return error.code
    finally:
        client.close()


def test_the_ingress_alone_may_read_secrets_all_or_those_that_are_named(cluster: Cluster, tmp_path: Path) -> None:
    cluster.put(
        namespace("other"),
        secret("tls"),
        secret("more"),
        {**secret("far"), "metadata": {"name": "far", "namespace": "other"}},
    )
    everywhere, here = "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io/tls", "/api/v1/namespaces/ns/secrets"
    one = f"{here}?fieldSelector=metadata.name%3Dtls"
    for path in ("/api/v1/secrets", here, f"{here}/tls", one):
        assert listed(cluster, cluster.kubeconfig, path) == 403
    wait_for(lambda: listed(cluster, cluster.ingress, everywhere) == ["far", "more", "tls"])

    assert cluster.install("ns/tls", "other") == 0
    wait_for(lambda: listed(cluster, cluster.ingress, everywhere) == 403)
    wait_for(lambda: listed(cluster, cluster.ingress, one) == ["tls"])
    assert listed(cluster, cluster.ingress, here) == 403
    with Watched(cluster.ingress, tmp_path / "good", wants(["ns/tls", "other"])) as source:
        source.connected()
        wait_for(
            lambda: {"tls", "far"} == {ref.name for ref in source.source.snapshot().objects if ref.kind == "Secret"}
        )
        cluster.client.delete("Secret", "ns", "tls")
        wait_for(lambda: {"far"} == {ref.name for ref in source.source.snapshot().objects if ref.kind == "Secret"})
    cluster.client.delete("Secret", "other", "far")
    assert cluster.install() == 0
    wait_for(lambda: listed(cluster, cluster.ingress, everywhere) == ["more"])


def test_tokens_of_the_service_accounts_do_what_certificates_do(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.put(secret("tls"))

    def printed(account: str, present: str = "", *options: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(present))
        capsys.readouterr()
        assert main(["token", "--kubeconfig", cluster.admin, *options, account]) == 0
        return capsys.readouterr().out

    made = {}
    for account, wanted in (("netstack-node", 403), ("netstack-ingress", ["tls"])):
        made[account] = printed(account)
        path = tmp_path / account
        path.write_text(made[account])
        wait_for(lambda: listed(cluster, path, "/api/v1/namespaces/ns/secrets") == wanted, account)  # noqa: B023
        assert isinstance(listed(cluster, path, "/api/v1/services"), list)
        assert printed(account, made[account]) == made[account], "it is good for long enough"
    assert printed("netstack-node", made["netstack-ingress"]) != made["netstack-ingress"]
    cluster.client.delete("ServiceAccount", "kube-system", "netstack-node")
    assert cluster.install() == 0
    wait_for(lambda: listed(cluster, tmp_path / "netstack-node", "/api/v1/services") == 401, "what is cached of it")
    assert printed("netstack-node", made["netstack-node"], "--check") == "# a new token for netstack-node\n"
    (tmp_path / "netstack-node").write_text(printed("netstack-node", made["netstack-node"]))
    wait_for(lambda: isinstance(listed(cluster, tmp_path / "netstack-node", "/api/v1/services"), list))
    assert printed("netstack-node", "", "--check") == "# a new token for netstack-node\n"


def test_the_service_account_of_a_pod_connects(cluster: Cluster, tmp_path: Path) -> None:
    """Where no kubeconfig is given: the variables and files that a kubelet makes for a pod."""
    cluster.put(secret("tls"))

    def mount(account: str) -> None:
        answer = cluster.client.request("POST", token.path(account), token.request())
        (tmp_path / "token").write_text(answer["status"]["token"])

    (tmp_path / "ca.crt").write_bytes(cluster.plane.ca.read_bytes())
    environ = {"KUBERNETES_SERVICE_HOST": cluster.plane.address, "KUBERNETES_SERVICE_PORT": str(cluster.plane.port)}
    credentials = Credentials("", account=tmp_path, environ=environ)
    mount("netstack-ingress")
    wait_for(lambda: listed(cluster, credentials, "/api/v1/namespaces/ns/secrets") == ["tls"])
    mount("netstack-node")
    assert listed(cluster, credentials, "/api/v1/namespaces/ns/secrets") == 403, "the token that is there now"
    assert isinstance(listed(cluster, credentials, "/api/v1/services"), list)


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
    with Watched(cluster.ingress, tmp_path / "good", INGRESS) as source:
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
