"""What is installed, against a fake of the two calls that it makes; against a real API server: tests/integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from instruments.authority import Authority
from netstack.cli.cluster import PATHS, documents, install, main
from netstack.source.client import Refused
from netstack.source.resources import RESOURCES

FILES = Path(__file__).parents[4] / "roles/agent/files"


class FakeClient:
    def __init__(self) -> None:
        self.held: dict[str, dict[str, Any]] = {}
        self.version = 0

    def get(self, path: str, query: Any = None) -> dict[str, Any]:
        if path not in self.held:
            raise Refused(404, "not found")
        return self.held[path]

    def send(self, method: str, path: str, body: Any, content_type: str, **query: str) -> dict[str, Any]:
        assert (method, content_type) == ("PATCH", "application/apply-patch+yaml")
        old = self.held.get(path)
        same = old is not None and {**old, "metadata": body["metadata"]} == body
        self.version += not same
        version = old["metadata"]["resourceVersion"] if same and old is not None else str(self.version)
        new = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
        if "dryRun" not in query:
            self.held[path] = new
        return new


def run(client: FakeClient, *, check: bool = False) -> list[str]:
    return list(install(client, documents([FILES / "crds", FILES / "rbac.yaml"]), check=check))  # type: ignore[arg-type]


def test_what_is_missing_is_made_once_and_a_check_makes_nothing() -> None:
    client = FakeClient()
    assert run(client, check=True) and not client.held
    made = run(client)
    assert "ClusterRole netstack-node" in made and "CustomResourceDefinition ipaddresspools.metallb.io" in made
    assert run(client) == [] and run(client, check=True) == []


def test_a_peers_definition_stays_and_our_rights_are_put_right() -> None:
    client = FakeClient()
    run(client)
    path = f"{PATHS['CustomResourceDefinition']}/ciliumnetworkpolicies.cilium.io"
    client.held[path] = {"metadata": {"name": "ciliumnetworkpolicies.cilium.io"}, "spec": {"theirs": True}}
    role = client.held[f"{PATHS['ClusterRole']}/netstack-node"]
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
    role = next(item for item in documents([FILES / "rbac.yaml"]) if item["kind"] == "ClusterRole")
    listed = {
        (group, plural)
        for rule in role["rules"]
        if "list" in rule["verbs"]
        for group in rule["apiGroups"]
        for plural in rule["resources"]
    }
    assert listed == {(r.version.rpartition("/")[0].replace("v1", ""), r.plural) for r in RESOURCES.values()}
    assert not any("*" in str(rule) or ("delete" in rule["verbs"] and rule["apiGroups"] != ["metallb.io"])
                   for rule in role["rules"])  # fmt: skip


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
