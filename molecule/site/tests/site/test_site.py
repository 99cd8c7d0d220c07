"""What site.yml leaves on a node, seen from outside of Ansible. Packets are for tests/integration and tests/e2e."""

from __future__ import annotations

import json
from typing import Any

import pytest

testinfra_hosts = ["ansible://netstack_nodes"]

DAEMONS = (
    *("netstack-agent", "netstack-announcer", "netstack-dns"),
    *("netstack-ingress", "netstack-haproxy", "netstack-observer"),
)
ONESHOTS = ("netstack-loader", "netstack-ingress-endpoint")

# systemd-analyze security: 0 is a closed box, 10 an open door. Each is what the unit has now, rounded up.
EXPOSURE = {
    "netstack-agent": 2.5,
    "netstack-announcer": 2.5,
    "netstack-dns": 2.5,
    "netstack-ingress": 1.5,
    "netstack-haproxy": 2.0,
    "netstack-observer": 1.5,
}


def show(host: Any, units: tuple[str, ...], *properties: str) -> dict[str, list[str]]:
    """unit -> its properties. One call for all of them: each takes a whole round by ansible."""
    asked = " ".join(f"-P {name}" for name in properties)
    said = host.run("; ".join(f"systemctl show {asked} {unit}.service" for unit in units)).stdout.split()
    width = len(properties)
    return {unit: said[number * width : (number + 1) * width] for number, unit in enumerate(units)}


def test_units_are_active_and_enabled(host: Any) -> None:
    states = show(host, DAEMONS + ONESHOTS, "ActiveState", "UnitFileState")
    wrong = [unit for unit, state in states.items() if state != ["active", "enabled"]]
    assert not wrong, [(states[unit], host.run("journalctl --no-pager -n 20 -u %s", unit).stdout) for unit in wrong]


def test_daemons_did_not_restart_on_their_own(host: Any) -> None:
    assert show(host, DAEMONS, "NRestarts") == {unit: ["0"] for unit in DAEMONS}


def test_daemons_are_sandboxed(host: Any) -> None:
    looks = (f"systemd-analyze security --no-pager {unit}.service | tail -n 1" for unit in EXPOSURE)
    lines = host.run("; ".join(looks)).stdout.splitlines()
    assert len(lines) == len(EXPOSURE), lines
    for line, (unit, most) in zip(lines, EXPOSURE.items(), strict=True):
        assert float(line.partition(":")[2].split()[0]) <= most, f"{unit}: {line}"


def test_the_node_says_that_it_is_ready(host: Any) -> None:
    status = json.loads(host.run("/opt/netstack/current/bin/netstack status --json").stdout)
    assert status["ready"], status["reasons"]
    assert set(status["daemons"]) == {"agent", "announcer", "dns", "ingress", "observer"}
    assert host.file("/opt/netstack/current").linked_to == f"/opt/netstack/releases/{status['release']}"


def test_every_node_runs_the_same_release(host: Any) -> None:
    release = host.file("/opt/netstack/current/release").content_string.strip()
    shown = host.run("systemctl show -P Environment netstack-agent.service").stdout.strip()
    assert shown == f"NETSTACK_RELEASE={release}"


def test_programs_and_maps_are_pinned(host: Any) -> None:
    assert host.file("/sys/fs/bpf/netstack/maps/services").exists
    assert host.file("/sys/fs/bpf/netstack/progs/uplink_ingress").exists
    assert "netstack/uplink_ingress" in host.run("tc filter show dev eth0 ingress").stdout


def test_the_only_cni_configuration_is_ours(host: Any) -> None:
    assert host.file("/etc/cni/net.d").listdir() == ["05-netstack.conflist"]
    assert host.file("/opt/cni/bin/netstack").linked_to.endswith("/bin/netstack-cni")


def test_dns_questions_have_a_socket_that_systemd_keeps(host: Any) -> None:
    assert host.socket("udp://169.254.1.53:53").is_listening
    assert host.socket("tcp://169.254.1.53:53").is_listening


def test_haproxy_runs_as_its_own_user_in_its_own_namespace(host: Any) -> None:
    pid = host.run("systemctl show -P MainPID netstack-haproxy.service").stdout.strip()
    assert host.run("stat -c %%U /proc/%s", pid).stdout.strip() == "haproxy"
    ours = host.run("stat -Lc %i /run/netns/netstack-ingress").stdout
    assert host.run("stat -Lc %%i /proc/%s/ns/net", pid).stdout == ours
    assert not host.service("haproxy").is_running


def test_the_secret_is_the_same_everywhere_and_closed(host: Any) -> None:
    key = host.file("/etc/netstack/announcer.key")
    assert (key.user, key.mode) == ("root", 0o600)
    assert len(key.content_string.strip()) == 64


@pytest.mark.parametrize(
    ("key", "value"), [("net.ipv4.ip_forward", 1), ("net.ipv4.ip_local_port_range", "32768\t49151")]
)
def test_sysctls_are_in_force(host: Any, key: str, value: object) -> None:
    assert host.sysctl(key) == value


# As `netplan apply` does it. Without what the kernel role says to networkd, it then takes away every route and rule
# that it has not made itself. Those by eth0 go with its address, and come back with the next audit of the agent.
NETWORKD = """
mkdir -p /run/systemd/network
cat > /run/systemd/network/10-eth0.network <<END
[Match]
Name=eth0
[Network]
Address=$(ip -4 -oneline address show dev eth0 scope global | awk '{print $4}')
Gateway=$(ip -4 route show default | awk '{print $3}')
END
systemctl stop netstack-agent
systemctl restart systemd-networkd
/lib/systemd/systemd-networkd-wait-online --interface=eth0 --timeout=30
networkctl reconfigure eth0
/lib/systemd/systemd-networkd-wait-online --interface=eth0 --timeout=30
"""
KEPT = "ip -4 rule show; ip -4 route show type unreachable proto 78"
ROUTES = "ip -4 route show proto 78"
AGAIN = f"""
systemctl stop systemd-networkd.socket systemd-networkd.service
rm /run/systemd/network/10-eth0.network
systemctl start netstack-agent
for _ in $(seq 1 20); do
    [ "$({ROUTES})" != "$0" ] || exit 0
    sleep 0.5
done
exit 1
"""


def test_networkd_leaves_routes_and_rules_alone(host: Any) -> None:
    kept, routes = host.run(KEPT).stdout, host.run(ROUTES).stdout.rstrip("\n")
    assert "unreachable" in kept and "via" in routes
    try:
        ran = host.run(NETWORKD)
        assert ran.rc == 0, ran.stderr
        assert host.run(KEPT).stdout == kept
    finally:
        again = host.run("sh -c %s %s", AGAIN, routes)
    assert again.rc == 0, host.run(ROUTES).stdout
