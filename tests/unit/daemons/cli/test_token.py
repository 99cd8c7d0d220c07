import base64
import json

import pytest
import yaml

from netstack.cli.token import LIFE_S, good, kubeconfig, path, request

CLUSTER = {"server": "https://10.0.0.1:6443", "certificate-authority-data": "Y2E="}
NOW = 1_800_000_000.0


def text(born: float = NOW, account: str = "netstack-node", **cluster: str) -> str:
    claims = {"iat": int(born), "exp": int(born) + LIFE_S}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return yaml.safe_dump(kubeconfig({**CLUSTER, **cluster}, account, f"e30.{payload}.c2ln"))


def test_what_is_asked_for() -> None:
    assert path("netstack-node") == "/api/v1/namespaces/kube-system/serviceaccounts/netstack-node/token"
    assert request()["spec"] == {"expirationSeconds": LIFE_S}


def test_a_token_is_good_in_the_first_half_of_its_life() -> None:
    assert good(text(), CLUSTER, "netstack-node", NOW + 1)
    assert good(text(), CLUSTER, "netstack-node", NOW + LIFE_S / 2 - 1)
    assert not good(text(), CLUSTER, "netstack-node", NOW + LIFE_S / 2 + 1)


@pytest.mark.parametrize(
    "other",
    [
        "",
        "{",
        "[]",
        "users: [{user: {client-certificate-data: x}}]",
        text(account="netstack-ingress"),
        text(server="https://10.0.0.2:6443"),
        yaml.safe_dump(kubeconfig(CLUSTER, "netstack-node", "opaque")),
        yaml.safe_dump(kubeconfig(CLUSTER, "netstack-node", "a.!.c")),
        yaml.safe_dump(kubeconfig(CLUSTER, "netstack-node", "a.bnVsbA.c")),
    ],
)
def test_what_is_not_ours_for_this_cluster_is_replaced(other: str) -> None:
    assert not good(other, CLUSTER, "netstack-node", NOW + 1)
