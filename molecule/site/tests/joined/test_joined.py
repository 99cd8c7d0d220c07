"""After n3 has joined again, by a run that left the others out."""

from __future__ import annotations

import json
from typing import Any

import yaml

testinfra_hosts = ["ansible://netstack_nodes"]

# Asks until it is so, for at most ten seconds: a change of the cluster takes a moment to reach the kernel.
UNTIL = "for i in $(seq 100); do {} && exit; sleep 0.1; done; exit 1"


def test_every_node_is_ready(host: Any) -> None:
    ready = host.run(UNTIL.format("netstack status > /dev/null"))
    assert ready.rc == 0, host.run("netstack status").stdout
    assert json.loads(host.run("netstack status --json").stdout)["reasons"] == []


def test_announcers_know_all_the_others(host: Any) -> None:
    name = host.run("hostname").stdout.strip()
    peers = yaml.safe_load(host.file("/etc/netstack/announcer.yaml").content_string)["peers"]
    assert set(peers) == {"n1", "n2", "n3"} - {name}


def test_routes_lead_to_the_pods_of_all_the_others(host: Any) -> None:
    name = host.run("hostname").stdout.strip()
    for number in "123":
        if name != f"n{number}":
            assert host.run(UNTIL.format(f"ip route | grep -F 10.244.{number}.0/24")).rc == 0, host.run(
                "ip route"
            ).stdout


def test_the_address_is_served_every_time(host: Any) -> None:
    ask = "curl --silent --max-time 2 --output /dev/null --write-out '%{http_code}' http://192.168.86.18/"
    assert host.run(f"for i in $(seq 20); do {ask}; echo; done").stdout.split() == ["404"] * 20
