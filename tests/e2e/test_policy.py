"""A policy is created, edited, broken and removed: what packets do, and what its author is told, with either source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from e2e.demo import LISTED, Home, reaches, refused
from lab.pods import Pod
from lab.shell import wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

NAMESPACE, NAME, KIND = "walk", "dog", "CiliumNetworkPolicy"
OTHER = "https://api.github.com/"
PATIENCE_S = 30.0


def policy(name: str) -> dict[str, Any]:
    """The pod may reach one name of the internet."""
    egress = [{"toFQDNs": [{"matchName": name}], "toPorts": [{"ports": [{"port": "443", "protocol": "TCP"}]}]}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": KIND,
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"endpointSelector": {"matchLabels": {"app": NAME}}, "egress": egress},
    }


@pytest.fixture
def dog(home: Home) -> Iterator[Pod]:
    pod = home.lab.pod(home.lab.nodes[-1].name, NAMESPACE, NAME, {"app": NAME})
    yield pod
    pod.delete()
    if home.lab.api.get(KIND, NAMESPACE, NAME) is not None:
        home.lab.delete(KIND, NAMESPACE, NAME)


def valid(home: Home, pod: Pod) -> dict[str, Any]:
    """The condition that says what became of the policy: of the object, or of its file in the status folder."""
    lab = home.lab
    if lab.source == "kubernetes":
        found = lab.api.get(KIND, NAMESPACE, NAME) or {}
    else:
        path = f"/var/lib/netstack/status/{KIND.lower()}.{NAMESPACE}.{NAME}.yaml"
        found = yaml.safe_load(lab.node(pod.node).run(["cat", path], check=False).stdout) or {}
    return next((one for one in (found.get("status") or {}).get("conditions") or () if one["type"] == "Valid"), {})


def told(home: Home) -> list[str]:
    """Notes of the Events of the policy, as `kubectl describe` asks for them."""
    found = home.lab.api.get(KIND, NAMESPACE, NAME) or {"metadata": {}}
    selector = f"involvedObject.name={NAME},involvedObject.uid={found['metadata'].get('uid')}"
    path = f"/api/v1/namespaces/{NAMESPACE}/events?{urlencode({'fieldSelector': selector})}"
    return [event["message"] for event in home.lab.api.client.request("GET", path)["items"]]


def test_a_policy_is_created_edited_broken_and_removed(home: Home, dog: Pod) -> None:
    lab = home.lab
    for url in (LISTED, OTHER):
        reaches(dog, url)
    addresses = {url: dog.get(url).remote for url in (LISTED, OTHER)}

    def only(url: str, other: str) -> None:
        wait_until(lambda: dog.get(other).status == 0, f"{other} to be refused", PATIENCE_S)
        wait_until(lambda: dog.get(url).status == 200, f"{url} to be reached", PATIENCE_S)
        refused(home, dog, other, addresses[other], to_peer=True)

    lab.apply(policy("api.github.com"))
    only(OTHER, LISTED)
    wait_until(lambda: valid(home, dog).get("status") == "True", "the policy to be said to be valid", PATIENCE_S)

    lab.apply(policy("api.anthropic.com"))
    only(LISTED, OTHER)

    lab.apply(policy("no name at all"))
    wait_until(lambda: valid(home, dog).get("status") == "False", "the policy to be said to be wrong", PATIENCE_S)
    assert "toFQDNs[0].matchName" in valid(home, dog)["message"]
    only(LISTED, OTHER)
    if lab.source == "kubernetes":
        wait_until(lambda: len(told(home)) == 1, "an Event", PATIENCE_S)
        assert "toFQDNs[0].matchName" in told(home)[0]

    lab.delete(KIND, NAMESPACE, NAME)
    for url in (LISTED, OTHER):
        wait_until(lambda url=url: dog.get(url).status == 200, f"{url} to be reached", PATIENCE_S)  # type: ignore[misc]
    shown = [json.loads(node.run("netstack status --json").stdout)["policies"] for node in lab.nodes]
    assert not any(f"{KIND} {NAMESPACE}/{NAME}" in str(policies) for policies in shown)
