"""What the API server lets in and netstack does not serve: `kubectl describe` tells its author the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from e2e.demo import Home
from e2e.outage import ingress
from lab import Lab
from lab.objects import key
from lab.shell import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.parametrize("performance", ["kubernetes"], indirect=True),
]

PATIENCE_S = 60.0
HTTP = [{"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}]}]
NOBODY = {"matchLabels": {"app": "nobody"}}
NOWHERE = {"service": {"name": "nowhere", "port": {"number": 80}}}


def made(version: str, kind: str, namespace: str, spec: dict[str, Any], **annotations: str) -> dict[str, Any]:
    metadata = {"name": "refused", "annotations": annotations} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


FAR = {"metallb.universe.tf/loadBalancerIPs": "10.9.9.9"}
CILIUM = "cilium.io/v2"
REFUSED = {
    "addresses": made("metallb.io/v1beta1", "IPAddressPool", "metallb-system", {"addresses": ["192.168.86.300/32"]}),
    "10.9.9.9": made("v1", "Service", "home", {"type": "LoadBalancer", "ports": [{"port": 80}]}, **FAR),
    "spec.ingress[0]": made(CILIUM, "CiliumNetworkPolicy", "home", {"endpointSelector": NOBODY, "ingress": HTTP}),
    "spec.egress[0]": made(CILIUM, "CiliumClusterwideNetworkPolicy", "", {"endpointSelector": NOBODY, "egress": HTTP}),
    "nowhere": {**ingress("refused.home.lab"), "spec": {"ingressClassName": "nginx", "defaultBackend": NOWHERE}},
}
"""A word of the reason -> an object that is wrong there."""


def described(lab: Lab, item: dict[str, Any]) -> list[str]:
    """Notes of the Events that `kubectl describe` lists below an object."""
    found = lab.api.get(item["kind"], *key(item)) or {"metadata": {}}
    selector = f"involvedObject.name=refused,involvedObject.uid={found['metadata'].get('uid')}"
    path = f"/api/v1/namespaces/{key(item)[0] or 'default'}/events?{urlencode({'fieldSelector': selector})}"
    return sorted(event["message"] for event in lab.api.client.request("GET", path)["items"])


@pytest.fixture
def lab(home: Home) -> Iterator[Lab]:
    home.lab.apply(REFUSED.values())
    yield home.lab
    for item in REFUSED.values():
        home.lab.delete(item["kind"], *key(item))


def test_each_reason_is_told_once(lab: Lab) -> None:
    for word, item in REFUSED.items():
        wait_until(lambda item=item: bool(described(lab, item)), f"an Event of {item['kind']}", PATIENCE_S)  # type: ignore[misc]
        notes = described(lab, item)
        assert len(set(notes)) == len(notes) and any(word in note for note in notes), f"{item['kind']}: {notes}"
