"""What a node may do in the cluster: its credentials, who makes them, and that the ingress alone may read Secrets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.demo import ROOT, VIP, Home, expect
from e2e.outage import KUBECONFIGS, in_step, ingress
from lab import Lab, network, tls
from lab.controlplane import ApiError
from lab.lab import ingress_user, node_user
from lab.shell import run, wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.parametrize("performance", ["kubernetes"], indirect=True),
]

HOSTS = {"lock.home.lab": "lock-tls", "safe.home.lab": "safe-tls"}
PATIENCE_S = 60.0


def secured(host: str) -> list[dict[str, Any]]:
    """An Ingress with TLS and its Secret."""
    pair = tls.certificate([host])
    data = {"tls.crt": pair.certificate, "tls.key": pair.key}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": HOSTS[host], "namespace": "home"},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(path.read_bytes()).decode() for name, path in data.items()},
    }
    plain = ingress(host)
    return [secret, {**plain, "spec": plain["spec"] | {"tls": [{"hosts": [host], "secretName": HOSTS[host]}]}}]


def trusted(lab: Lab, host: str) -> bool:
    """Whether a client that believes the lab's authority gets an answer by TLS."""
    options = ("--cacert", str(tls.authority().certificate))
    return lab.client(1).get(f"https://{host}/", resolve=VIP, options=options).status == 200


@pytest.fixture
def locked(home: Home) -> Iterator[Home]:
    for host in HOSTS:
        home.lab.apply(secured(host))
        wait_until(lambda host=host: trusted(home.lab, host), f"{host} to be served", PATIENCE_S)  # type: ignore[misc]
    yield home
    for host, secret in HOSTS.items():
        home.lab.delete("Ingress", "home", host.partition(".")[0])
        home.lab.delete("Secret", "home", secret)


def site(lab: Lab, **variables: object) -> str:
    """site.yml's tasks about the API server, from where the API server is, with the administrator's kubeconfig alone;
    the recap."""
    given: dict[str, object] = {
        "netstack_admin_kubeconfig": str(lab.controlplane.user("admin") / "kubeconfig"),
        "netstack_kubeconfig_source": "",
        "netstack_ingress_kubeconfig_source": "",
    }
    inventory = lab.names.run / "inventory/hosts.yml"
    command = [str(ROOT / "tests/playbook.sh"), "playbooks/site.yml", "-i", str(inventory), "--tags", "agent,ingress"]
    inside = network.in_netns(lab.names.netns_path(lab.controller.name), ["env", "-C", str(ROOT), *command])
    return run([*inside, "--extra-vars", json.dumps(given | variables)], timeout_s=300).stdout.partition("PLAY RECAP")[
        2
    ]


def test_the_ingress_alone_may_read_secrets(locked: Home) -> None:
    lab = locked.lab
    for node in lab.nodes:
        client = lab.controlplane.client(node_user(node.name))
        for path in ("/api/v1/secrets", "/api/v1/namespaces/home/secrets/lock-tls"):
            with pytest.raises(ApiError) as refused:
                client.request("GET", path)
            assert refused.value.code == 403
        client.close()
        client = lab.controlplane.client(ingress_user(node.name))
        assert {one["metadata"]["name"] for one in client.list("Secret", "home")} == set(HOSTS.values())
        client.close()


def test_the_playbook_makes_credentials_and_narrows_them(locked: Home) -> None:
    lab = locked.lab
    before = lab.nodes[0].run("netstack status --json").stdout
    site(lab)
    for node in lab.nodes:
        for path in KUBECONFIGS:
            expect("token:" in node.run(["cat", path]).stdout, f"{node.name} {path} has no token")
        wait_until(lambda node=node: in_step(node), f"{node.name} to be in step", PATIENCE_S)  # type: ignore[misc]
    assert json.loads(lab.nodes[0].run("netstack status --json").stdout)["release"] == json.loads(before)["release"]
    recap = site(lab)
    assert recap.count("changed=0") == len(lab.nodes), recap

    site(lab, netstack_ingress_secrets=["home/lock-tls"])
    wait_until(lambda: not trusted(lab, "safe.home.lab"), "the other Secret to be forgotten", PATIENCE_S)
    for node in lab.nodes:
        wait_until(lambda node=node: in_step(node), f"{node.name} to be in step", PATIENCE_S)  # type: ignore[misc]
    assert trusted(lab, "lock.home.lab")
    client = lab.controlplane.client(ingress_user("n1"))
    with pytest.raises(ApiError) as refused:
        client.list("Secret", "home")
    assert refused.value.code == 403
    client.close()

    site(lab)  # and back, as those who come after expect it
    wait_until(lambda: trusted(lab, "safe.home.lab"), "the other Secret to be known again", PATIENCE_S)
    for node in lab.nodes:
        wait_until(lambda node=node: in_step(node), f"{node.name} to be in step", PATIENCE_S)  # type: ignore[misc]
