"""Without an API server the network stays as it was last known, and catches up when there is one again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from e2e.demo import DAEMONS, LISTED, VIP, Home, get_ha, reaches, refused, wait_ready
from lab import Lab
from lab.router import ATTACKER
from lab.shell import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.parametrize("performance", ["kubernetes"], indirect=True),
]

CATCH_UP_S = 60.0


@pytest.fixture
def dark(home: Home) -> Iterator[Home]:
    """The home while its control plane is gone, with an agent of its own: the demo's lost its node's power."""
    lab = home.lab
    agent = lab.pod("n3", "openclaw", "survivor", {"app": "openclaw"})
    wait_until(lambda: serves(lab, "ha.home.lab"), "the web to be served", CATCH_UP_S)
    lab.controlplane.kill()
    yield dataclasses.replace(home, openclaw=agent)
    lab.controlplane.start()
    agent.delete()


def serves(lab: Lab, host: str) -> bool:
    return lab.client(1).get(f"http://{host}/", resolve=VIP).status == 200


def ingress(host: str) -> dict[str, object]:
    """Another name for Home Assistant."""
    service = {"service": {"name": "home-assistant", "port": {"number": 8123}}}
    rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": service}]}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": host.partition(".")[0], "namespace": "home"},
        "spec": {"ingressClassName": "nginx", "rules": [rule]},
    }


def test_the_network_stays_as_it_was(dark: Home) -> None:
    get_ha(dark.lab)
    reaches(dark.openclaw, LISTED)
    refused(dark, dark.openclaw, LISTED, ATTACKER, to_peer=True)


def test_daemons_that_start_without_an_api_server_know_what_they_knew(dark: Home) -> None:
    node = dark.lab.node(dark.openclaw.node)
    node.run(f"systemctl restart {DAEMONS}")
    wait_until(lambda: serves(dark.lab, "ha.home.lab"), "the web to be served", CATCH_UP_S)
    reaches(dark.openclaw, LISTED)
    refused(dark, dark.openclaw, LISTED, ATTACKER, to_peer=True)


def test_it_catches_up(home: Home) -> None:
    lab = home.lab
    lab.controlplane.kill()
    lab.controlplane.start()
    lab.apply(ingress("late.home.lab"))
    wait_until(lambda: serves(lab, "late.home.lab"), "the new name to be served", CATCH_UP_S)
    for node in lab.nodes:
        wait_ready(node)
    lab.delete("Ingress", "home", "late")
    wait_until(lambda: not serves(lab, "late.home.lab"), "the deleted name to be gone", CATCH_UP_S)
