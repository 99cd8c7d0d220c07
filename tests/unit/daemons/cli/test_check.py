from pathlib import Path

import pytest
import yaml

from instruments import clusters
from instruments.authority import Authority
from netstack.cli.check import config_problem, problems, range_effects

HOME = Path(__file__).parents[3] / "e2e/manifests"

BAD = {
    "pool": (
        "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: p, namespace: m}\n"
        "spec: {addresses: [192.168.86.19-192.168.86.5]}\n",
        "a.yaml: IPAddressPool m/p: spec.addresses[0]: ",
    ),
    "policy": (
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: m}\n"
        "spec: {endpointSelector: {matchLabels: {app: x}}, egress: [{toEntitees: [all]}]}\n",
        "CiliumNetworkPolicy m/p: spec.egress[0].toEntitees: ",
    ),
    "address": (
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: m, annotations: "
        "{metallb.io/loadBalancerIPs: 10.0.0.1}}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n",
        "Service m/s: ",
    ),
    "ingress": (
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i, namespace: m}\n"
        "spec: {ingressClassName: nginx, rules: [{host: a.b, http: {paths: [{path: /, pathType: Prefix, backend: "
        "{service: {name: gone, port: {number: 80}}}}]}}]}\n---\napiVersion: networking.k8s.io/v1\n"
        "kind: IngressClass\nmetadata: {name: nginx}\nspec: {controller: k8s.io/ingress-nginx}\n",
        "Ingress m/i: ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_each_daemon_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    text, words = BAD[name]
    (tmp_path / "a.yaml").write_text(text)
    (problem,) = problems(tmp_path)
    assert problem.startswith(words)


def test_what_another_meaning_of_ranges_would_open_is_told_and_is_no_problem(tmp_path: Path) -> None:
    spec = {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.244.2.12/32"}}]}], "policyTypes": ["Egress"]}
    meta = {"name": "p", "namespace": "one"}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}
    pods = [clusters.pod(name, {}, [], "default") for name in ("one/a", "one/c")]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([clusters.node(1), clusters.node(2), *pods, policy]))
    assert problems(tmp_path) == []
    assert range_effects(tmp_path) == [
        f"policy_cidr_match_mode [pods] opens one/a -> one/c (10.244.2.12) {protocol}, by NetworkPolicy one/p: "
        "spec.egress[0]"
        for protocol in ("ICMP", "SCTP", "TCP", "UDP")
    ]


def test_the_manifests_of_a_home_are_right() -> None:
    assert problems(HOME) == []


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert problems(tmp_path / "x") == [f"{tmp_path / 'x'}: is not a folder"]


def test_a_configuration_names_file_and_field(tmp_path: Path) -> None:
    file = tmp_path / "announcer.yaml"
    file.write_text("node: n1\nnode_address: 192.168.86.21\nkey_file: /k\nbeats: 3\n")
    assert str(config_problem("announcer", file)).startswith(f"{file}: beats: unknown field")
    file.write_text("node: n1\nnode_address: 192.168.86.21\nkey_file: /k\n")
    assert config_problem("announcer", file) is None
    assert config_problem("dns", tmp_path / "gone.yaml") == f"{tmp_path / 'gone.yaml'}: No such file or directory"


def test_a_kubeconfig_that_the_daemon_could_not_use_is_a_problem(tmp_path: Path) -> None:
    file, kubeconfig = tmp_path / "ingress.yaml", tmp_path / "kubeconfig"
    file.write_text(f"node: n1\nsource: kubernetes\nkubeconfig: {kubeconfig}\n")
    assert str(config_problem("ingress", file)).startswith(f"{file}: kubeconfig: {kubeconfig}: No such file")
    assert config_problem("ingress", file, credentials=False) is None, "check mode writes none"
    authority = Authority(tmp_path)
    user = {"exec": {"command": "aws"}}
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1", "certificate-authority": "ca.crt"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    assert str(config_problem("ingress", file)).startswith(f"{file}: user.exec: a program that makes credentials")
    certificate, key = authority.issue("node")
    user.clear()
    user.update({"client-certificate": str(certificate), "client-key": str(key)})  # type: ignore[dict-item]
    kubeconfig.write_text(yaml.safe_dump(config))
    assert config_problem("ingress", file) is None
    file.write_text("node: n1\nsource: etcd\n")
    assert str(config_problem("ingress", file)).endswith("source must be one of directory, kubernetes, not 'etcd'")
