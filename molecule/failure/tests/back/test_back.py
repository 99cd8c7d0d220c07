"""After n2 has lost its power and has it again."""

from __future__ import annotations

from typing import Any

testinfra_hosts = ["ansible://netstack_nodes"]

# Asks until it is so, for at most sixty seconds.
UNTIL = "for i in $(seq 600); do {} && exit; sleep 0.1; done; exit 1"


def test_every_node_is_ready(host: Any) -> None:
    assert host.run(UNTIL.format("netstack status > /dev/null")).rc == 0, host.run("netstack status").stdout


def test_no_unit_has_failed(host: Any) -> None:
    assert host.run("systemctl --failed --no-legend --plain 'netstack-*'").stdout == ""


def test_programs_are_attached_and_pinned(host: Any) -> None:
    assert host.file("/sys/fs/bpf/netstack/progs/uplink_ingress").exists
    assert "netstack/uplink_ingress" in host.run("tc filter show dev eth0 ingress").stdout


def test_the_web_is_served_every_time(host: Any) -> None:
    ask = "curl --silent --max-time 2 --output /dev/null --write-out '%{http_code}' http://192.168.86.18/"
    assert host.run(UNTIL.format(f'[ "$({ask})" = 404 ]')).rc == 0
    said = host.run(f"for i in $(seq 20); do {ask}; echo; done").stdout.split()
    assert said == ["404"] * 20
