"""The control plane is a real one: it refuses, derives, forgets when told so, and leaves no process behind."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from instruments.plane import control_plane, free_port
from lab import shell
from lab.controlplane import ApiError, Client, ControlPlane, Unavailable, binaries, skip_reason
from lab.shell import alive

pytestmark = pytest.mark.root

wait_until = functools.partial(shell.wait_until, timeout_s=60.0)

TESTS = Path(__file__).parents[1]
NODE = "netstack:node:n1"
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}}
PROGRAMS = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture
def client(plane: ControlPlane) -> Iterator[Client]:
    client = plane.client()
    yield client
    client.close()


def namespace(client: Client, name: str) -> str:
    """A new namespace in which pods can be made, which is when it has its service account."""
    client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    wait_until(lambda: client.get("ServiceAccount", name, "default") is not None, f"the service account of {name}")
    return name


def pod(namespace: str, name: str, address: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": [{"name": name, "image": "lab"}]},
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service(namespace: str, name: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def endpoints(client: Client, namespace: str) -> list[tuple[str, bool]]:
    return [
        (address, one["conditions"]["ready"])
        for found in client.list("EndpointSlice", namespace)
        for one in found.get("endpoints") or []
        for address in one["addresses"]
    ]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that comes first on PATH, on a machine without Go, assets or anything kept."""
    for name in ("KUBEBUILDER_ASSETS", "CI", "NETSTACK_REQUIRE_CONTROLPLANE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETSTACK_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    return tmp_path


def test_programs_come_from_the_assets_folder_if_it_has_all(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(bare))
    for name in PROGRAMS:
        assert skip_reason() is not None  # the usual archives have no controller manager
        (bare / name).touch()
    assert skip_reason() is None
    assert binaries.programs() == bare


@pytest.mark.parametrize("go", ["", "go1.19.8"])
def test_a_machine_that_cannot_build_says_so(monkeypatch: pytest.MonkeyPatch, bare: Path, go: str) -> None:
    if go:
        (bare / "go").write_text(f"#!/bin/sh\necho {go}\n")
        (bare / "go").chmod(0o755)
    why_not = skip_reason()
    assert why_not is not None
    assert why_not.startswith("no Kubernetes control plane: ")
    assert (go or "no Go >= 1.21 on PATH") in why_not
    monkeypatch.setenv("CI", "1")
    with pytest.raises(Unavailable, match="no Kubernetes control plane"):
        skip_reason()
    with pytest.raises(Unavailable):
        binaries.programs()


def test_it_is_the_pinned_kubernetes_and_whole(plane: ControlPlane, client: Client) -> None:
    assert set(plane.running()) == PROGRAMS
    if "KUBEBUILDER_ASSETS" not in os.environ:
        assert client.request("GET", "/version")["gitVersion"] == binaries.version()
    kubernetes = client.get("Service", "default", "kubernetes")
    assert kubernetes is not None
    assert kubernetes["spec"]["clusterIP"] == "10.96.0.1"


def test_a_user_may_do_what_rbac_grants_and_nothing_else(plane: ControlPlane, client: Client) -> None:
    meta = {"name": "reads-services"}
    rules = [{"apiGroups": [""], "resources": ["services"], "verbs": ["list"]}]
    named = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": meta}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "tests:readers"}
    granted = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads-services"}
    client.apply({**named, "kind": "ClusterRole", "rules": rules})
    client.apply({**named, "kind": "ClusterRoleBinding", "roleRef": granted, "subjects": [subject]})
    plane.kubeconfig(NODE, ["tests:readers"])
    node = plane.client(NODE)
    secrets = "/api/v1/namespaces/kube-system/secrets"
    wait_until(lambda: allowed(node, "/api/v1/services"), "the grant to hold")
    with pytest.raises(ApiError, match=f'User "{NODE}" cannot list resource "secrets"') as refused:
        node.request("GET", secrets)
    assert refused.value.code == 403
    assert client.request("GET", secrets)["kind"] == "SecretList"
    node.close()


def allowed(client: Client, path: str) -> bool:
    try:
        client.request("GET", path)
    except ApiError:
        return False
    return True


def test_an_expired_certificate_is_refused(plane: ControlPlane) -> None:
    plane.kubeconfig("late", valid_s=-1)
    late = plane.client("late")
    with pytest.raises(ApiError) as refused:
        late.request("GET", "/api/v1/services")
    assert refused.value.code == 401
    late.close()


def test_a_kubeconfig_names_files_or_holds_them(plane: ControlPlane) -> None:
    named = plane.kubeconfig("someone")
    assert f"client-key: {named.parent}/client.key" in named.read_text()
    held = plane.kubeconfig("someone", inline=True).read_text()
    assert "client-key-data: " in held
    assert str(plane.folder) not in held


def test_the_controller_manager_makes_endpoint_slices_and_collects_them(client: Client) -> None:
    shop = namespace(client, "shop")
    client.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})  # pods of unknown nodes do not count
    client.apply([pod(shop, "web", "10.244.1.3"), service(shop, "web")])
    wait_until(lambda: endpoints(client, shop) == [("10.244.1.3", True)], "the endpoint slice")
    client.set_status("Pod", shop, "web", {"conditions": [{"type": "Ready", "status": "False"}]})
    wait_until(lambda: endpoints(client, shop) == [("10.244.1.3", False)], "the endpoint not to be ready")
    client.delete("Service", shop, "web")
    wait_until(lambda: client.list("EndpointSlice", shop) == [], "the slice of a deleted service to go")


def test_the_controller_manager_gives_a_node_its_pod_cidr(client: Client) -> None:
    client.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n7"}})
    wait_until(lambda: "podCIDR" in (client.get("Node", "", "n7") or {})["spec"], "a PodCIDR")
    client.delete("Node", "", "n7")


def test_a_pinned_pod_cidr_stays(client: Client) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n9"}, "spec": {"podCIDR": "10.244.9.0/24"}}
    (stored,) = client.apply(node)
    assert stored["spec"]["podCIDRs"] == ["10.244.9.0/24"]
    client.delete("Node", "", "n9")


def test_a_custom_resource_is_known_once_it_is_defined(client: Client) -> None:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "kettles.tests.example"},
        "spec": {
            "group": "tests.example",
            "names": {"kind": "Kettle", "plural": "kettles"},
            "scope": "Cluster",
            "versions": [version],
        },
    }
    with pytest.raises(KeyError, match=r"the API server has no tests\.example/v1 Kettle"):
        client.resource("Kettle", "tests.example/v1")
    client.apply(definition)

    def known() -> bool:
        try:
            return client.resource("Kettle").plural == "kettles"
        except KeyError:
            return False

    wait_until(known, "the new kind")


def test_restart_keeps_the_data_and_wipe_begins_another_history(plane: ControlPlane, client: Client) -> None:
    (kept,) = client.apply(CONFIG_MAP)
    for number in range(300):  # further than a new history gets by itself
        (last,) = client.apply({**CONFIG_MAP, "data": {"number": str(number)}})
    with ThreadPoolExecutor(1) as thread:  # what a thread started outlives it
        thread.submit(plane.restart).result()
    again = client.get("ConfigMap", "default", "kept")
    assert again is not None
    assert again["metadata"]["uid"] == kept["metadata"]["uid"]
    plane.kill()
    assert plane.running() == {}
    with pytest.raises(OSError):
        client.get("ConfigMap", "default", "kept")
    plane.wipe()
    assert client.get("ConfigMap", "default", "kept") is None
    (new,) = client.apply(CONFIG_MAP)
    assert new["metadata"]["uid"] != last["metadata"]["uid"]
    assert int(new["metadata"]["resourceVersion"]) < int(last["metadata"]["resourceVersion"])


def test_two_at_once(plane: ControlPlane, client: Client, tmp_path: Path) -> None:
    with ControlPlane(tmp_path, port=free_port()) as second:
        other = second.client()
        other.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "only-here"}})
        assert client.get("Namespace", "", "only-here") is None
        assert not set(plane.running().values()) & set(second.running().values())
        other.close()
    assert second.running() == {}
    assert set(plane.running()) == PROGRAMS


@pytest.mark.usefixtures("plane")  # skipped where none can be had
def test_a_killed_maker_leaves_no_process(tmp_path: Path) -> None:
    program = f"""
import signal
from pathlib import Path
from lab.controlplane import ControlPlane
plane = ControlPlane(Path({str(tmp_path)!r}), port={free_port()})
plane.start()
print(*plane.running().values(), flush=True)
signal.pause()
"""
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    maker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert maker.stdout is not None
        pids = [int(pid) for pid in maker.stdout.readline().split()]
        assert len(pids) == len(PROGRAMS)
        maker.send_signal(signal.SIGKILL)
        maker.wait()
        wait_until(lambda: not any(alive(pid) for pid in pids), "the end of all its programs")
    finally:
        maker.kill()
        maker.communicate()
