"""After every daemon was killed at once, on every node."""

from __future__ import annotations

from typing import Any

testinfra_hosts = ["ansible://netstack_nodes"]

DAEMONS = (
    *("netstack-agent", "netstack-announcer", "netstack-dns"),
    *("netstack-ingress", "netstack-haproxy", "netstack-observer"),
)
# Asks until it is so, for at most thirty seconds.
UNTIL = "for i in $(seq 300); do {} && exit; sleep 0.1; done; exit 1"


def test_the_node_is_ready_again(host: Any) -> None:
    assert host.run(UNTIL.format("netstack status > /dev/null")).rc == 0, host.run("netstack status").stdout


def test_systemd_has_started_every_one_again(host: Any) -> None:
    for unit in DAEMONS:
        assert host.run(UNTIL.format(f"systemctl is-active --quiet {unit}.service")).rc == 0, unit
        assert int(host.run("systemctl show -P NRestarts %s.service", unit).stdout) >= 1, unit


def test_the_web_is_served(host: Any) -> None:
    ask = "curl --silent --max-time 2 --output /dev/null --write-out '%{http_code}' http://192.168.86.18/"
    assert host.run(UNTIL.format(f'[ "$({ask})" = 404 ]')).rc == 0
