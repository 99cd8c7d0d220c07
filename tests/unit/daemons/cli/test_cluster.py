"""What is installed, against a fake of the two calls that it makes; against a real API server: tests/integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instruments.authority import Authority
from netstack.agent.__main__ import WANTS as AGENT
from netstack.announcer.__main__ import WANTS as ANNOUNCER
from netstack.cli import rights
from netstack.cli.cluster import PATHS, documents, install, main, withdraw
from netstack.ingress.wants import wants
from netstack.source.client import Refused
from netstack.source.ownership import OWNED
from netstack.source.resources import RESOURCES

FILES = Path(__file__).parents[4] / "roles/agent/files"


class FakeClient:
    def __init__(self) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.version = 0

    def get(self, path: str, query: Any = None) -> dict[str, Any]:
        if query is not None:
            plural = path.rpartition("/")[2]
            return {"items": [item for at, item in self.held.items() if at.split("/")[-2] == plural]}
        if path not in self.held:
            raise Refused(404, "not found")
        return self.held[path]

    def send(self, method: str, path: str, body: Any = None, content_type: str = "", **query: str) -> dict[str, Any]:
        if method == "DELETE":
            return self.held.pop(path)
        assert (method, content_type) == ("PATCH", "application/apply-patch+yaml")
        old = self.held.get(path)
        same = old is not None and {**old, "metadata": body["metadata"]} == body
        self.version += not same
        version = old["metadata"]["resourceVersion"] if same and old is not None else str(self.version)
        new = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
        if "dryRun" not in query:
            self.held[path] = new
        return new


def run(client: Any, *secrets: str, check: bool = False) -> list[str]:
    wanted = list(rights.narrowed(documents([FILES / "crds", FILES / "rbac.yaml"]), secrets))
    return [*install(client, wanted, check=check), *withdraw(client, wanted, check=check)]


def test_what_is_missing_is_made_once_and_a_check_makes_nothing() -> None:
    client = FakeClient()
    assert run(client, check=True) and not client.held
    made = run(client)
    assert "ClusterRole netstack-node" in made and "CustomResourceDefinition ipaddresspools.metallb.io" in made
    assert run(client) == [] and run(client, check=True) == []


def test_a_peers_definition_stays_and_our_rights_are_put_right() -> None:
    client = FakeClient()
    run(client)
    path = f"{PATHS['CustomResourceDefinition'].format('')}/ciliumnetworkpolicies.cilium.io"
    client.held[path] = {"metadata": {"name": "ciliumnetworkpolicies.cilium.io"}, "spec": {"theirs": True}}
    role = client.held[f"{PATHS['ClusterRole'].format('')}/netstack-node"]
    role["rules"] = []
    assert run(client) == ["ClusterRole netstack-node"]
    assert client.held[path]["spec"] == {"theirs": True}


def test_every_kind_with_a_definition_has_one_and_the_rights_to_be_read() -> None:
    shipped = list(documents([FILES / "crds"]))
    assert {item["metadata"]["name"] for item in shipped} == {r.definition for r in RESOURCES.values() if r.crd}
    for item in shipped:
        (version,) = item["spec"]["versions"]
        resource = RESOURCES[item["spec"]["names"]["kind"]]
        assert resource.version == f"{item['spec']['group']}/{version['name']}"
        assert (item["spec"]["scope"] == "Namespaced") == resource.namespaced
        assert version["subresources"] == {"status": {}}


def may(role: str) -> dict[str, set[str]]:
    """Verb -> "group/resource" that a ClusterRole allows."""
    (found,) = (
        i for i in documents([FILES / "rbac.yaml"]) if (i["kind"], i["metadata"]["name"]) == ("ClusterRole", role)
    )
    allowed: dict[str, set[str]] = {}
    for rule in found["rules"]:
        for verb in rule["verbs"]:
            allowed.setdefault(verb, set()).update(f"{g}/{r}" for g in rule["apiGroups"] for r in rule["resources"])
    return allowed


def place(kind: str) -> str:
    return f"{RESOURCES[kind].version.rpartition('/')[0]}/{RESOURCES[kind].plural}"


def test_each_may_list_and_watch_what_it_wants_and_only_the_ingress_secrets() -> None:
    ingress = {place(want.kind) for want in wants()} | {"/namespaces"}
    node = {place(want.kind) for want in (*AGENT, *ANNOUNCER)}
    assert may("netstack-ingress-secrets") == {"list": {"/secrets"}, "watch": {"/secrets"}}
    assert may("netstack-ingress")["watch"] == ingress - {"/secrets"} == may("netstack-ingress")["list"]
    assert may("netstack-node")["watch"] == node == may("netstack-node")["list"] - {"metallb.io/servicel2statuses"}
    assert not any("secrets" in str(may(role)) for role in ("netstack-node", "netstack-ingress"))


def test_each_may_write_what_it_says_and_nothing_else() -> None:
    events = "events.k8s.io/events"
    statuses = {f"{place(kind)}/status" for kind in OWNED}
    assert may("netstack-ingress")["patch"] == {"networking.k8s.io/ingresses/status", place("EndpointSlice"), events}
    assert may("netstack-node")["patch"] == statuses - {"networking.k8s.io/ingresses/status"} | {events}
    assert may("netstack-node")["create"] == {"metallb.io/servicel2statuses", events}
    assert may("netstack-ingress")["create"] == {place("EndpointSlice"), events}
    assert may("netstack-node")["delete"] == {"metallb.io/servicel2statuses"} and "delete" not in may(
        "netstack-ingress"
    )


def test_rights_to_secrets_are_narrowed_moved_and_widened_again() -> None:
    client = FakeClient()
    run(client)
    assert run(client, "web", check=True) == ["RoleBinding netstack-ingress-secrets",
                                              "ClusterRoleBinding netstack-ingress-secrets"]  # fmt: skip
    assert run(client, "web", "home/tls") == [
        "Role netstack-ingress-secrets",
        "RoleBinding netstack-ingress-secrets-named",
        "RoleBinding netstack-ingress-secrets",
        "ClusterRoleBinding netstack-ingress-secrets",
    ]
    assert run(client, "web", "home/tls") == []
    assert "RoleBinding netstack-ingress-secrets" in run(client, "home/tls")
    assert len(run(client)) == 3 and run(client) == []


def test_a_kubeconfig_is_printed_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate, key = Authority(tmp_path).issue("node")
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1", "certificate-authority": "ca.crt"}}],
        "users": [{"name": "u", "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    assert main(["kubeconfig", str(tmp_path / "kubeconfig")]) == 0
    flat = yaml.safe_load(capsys.readouterr().out)
    assert set(flat["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert main(["kubeconfig", str(tmp_path / "gone")]) == 1
    assert "No such file" in capsys.readouterr().err
