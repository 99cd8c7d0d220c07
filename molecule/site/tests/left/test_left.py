"""After n3 has left: the others have forgotten it, and do its work."""

from __future__ import annotations

import json
from typing import Any

import yaml

testinfra_hosts = ["ansible://netstack_nodes:!n3"]

# Asks until it is so, for at most ten seconds: a change of the cluster takes a moment to reach the kernel.
UNTIL = "for i in $(seq 100); do {} && exit; sleep 0.1; done; exit 1"


def test_no_route_leads_to_its_pods(host: Any) -> None:
    assert host.run(UNTIL.format("! ip route | grep -F 10.244.3.")).rc == 0, host.run("ip route").stdout


def test_the_announcers_know_it_no_more(host: Any) -> None:
    peers = yaml.safe_load(host.file("/etc/netstack/announcer.yaml").content_string)["peers"]
    assert "n3" not in peers
    assert len(peers) == 1


def test_the_nodes_that_stay_are_ready(host: Any) -> None:
    ready = host.run(UNTIL.format("netstack status > /dev/null"))
    assert ready.rc == 0, host.run("netstack status").stdout
    assert json.loads(host.run("netstack status --json").stdout)["reasons"] == []


def test_the_address_is_served_every_time(host: Any) -> None:
    ask = "curl --silent --max-time 2 --output /dev/null --write-out '%{http_code}' http://192.168.86.18/"
    assert host.run(f"for i in $(seq 20); do {ask}; echo; done").stdout.split() == ["404"] * 20


def test_its_ingress_has_said_that_it_serves_no_more(host: Any) -> None:
    """Its EndpointSlice stays, and so may its Node object, where the board only gets another network."""
    place = "/etc/netstack/manifests/endpointslice.ingress-nginx.ingress-nginx-controller-n3.yaml"
    (endpoint,) = yaml.safe_load(host.file(place).content_string)["endpoints"]
    assert endpoint["conditions"]["ready"] is False
