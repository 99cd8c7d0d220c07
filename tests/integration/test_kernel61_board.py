"""A board that is nothing but a board: a machine of its own with the boards' kernel, under the whole playbook.

What nspawn's nodes cannot show, because they share the machine's kernel: modules, sysctls outside of the network,
cgroup v2 with its controllers, a clock of its own, VLANs and bonds. Interpreted, so it takes many minutes: for LONG=1.
The tests go on with one board, in this order.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from kernel61.home import VIP, Home, home
from kernel61.tagged import tagged
from lab import network, pods
from lab.objects import Object
from lab.shell import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("LONG") != "1", reason="many minutes of an interpreted machine: LONG=1"),
]

DAEMONS = ("agent", "announcer", "dns", "observer", "ingress")
MODULES = {"sch_ingress", "cls_bpf", "veth", "nf_tproxy_ipv4"}
SYSCTLS = {"kernel.unprivileged_bpf_disabled": "1", "net.ipv4.ip_forward": "1", "net.core.bpf_jit_enable": "1"}

# Each waits until the way that it is about to leave is dead, then takes the address along.
TO_VLAN = f"""
ip link add link eth0 name eth0.10 type vlan id 10
while ping -q -c 1 -W 1 {network.GATEWAY}; do :; done
ip address flush dev eth0
ip address add {{address}}/24 broadcast + dev eth0.10
ip link set eth0.10 up
ip route replace default via {network.GATEWAY} dev eth0.10
"""
FROM_VLAN = f"""
while ping -q -c 1 -W 1 {network.GATEWAY}; do :; done
ip link del eth0.10
ip address add {{address}}/24 broadcast + dev eth0
ip route replace default via {network.GATEWAY} dev eth0
"""
TO_BOND = f"""
ip link add bond0 type bond mode active-backup miimon 100
for card in eth0 eth1; do
    ip link set $card down
    ip address flush dev $card
    ip link set $card master bond0
done
ip address add {{address}}/24 broadcast + dev bond0
ip link set bond0 up
ip route replace default via {network.GATEWAY} dev bond0
"""


@pytest.fixture(scope="module")
def board() -> Iterator[Home]:
    with home("boardamd", "amd64") as made:
        yield made


def assert_as_the_role_says(board: Home) -> None:
    run = board.board.run
    assert board.modules() >= MODULES
    for key, value in SYSCTLS.items():
        assert run(["sysctl", "-n", key]).stdout.strip() == value, key


def test_the_whole_playbook_and_nothing_to_do_the_second_time(board: Home) -> None:
    assert not board.modules() & MODULES
    assert board.site() > 0
    assert board.site() == 0


def test_the_kernel_is_as_the_role_says(board: Home) -> None:
    assert board.board.run("uname -r").stdout.startswith("6.1.")
    assert board.board.run("stat -f -c %T /sys/fs/cgroup").stdout.strip() == "cgroup2fs"
    assert_as_the_role_says(board)


def test_a_pod_of_the_board_is_served_to_the_lan(board: Home) -> None:
    board.serve()


def test_modules_sysctls_and_service_come_back_by_themselves(board: Home) -> None:
    board.board.reboot()
    board.ready()
    assert_as_the_role_says(board)
    assert board.board.run("systemctl is-active systemd-modules-load").stdout.strip() == "active"
    board.serve()


def test_a_clock_that_jumps_opens_nothing_and_silences_nothing(board: Home) -> None:
    """An hour ahead and back: deadlines of addresses, nodes and flows are of a clock that nobody sets."""
    client = holding(board, ["nc", "-v", "-w", "60", VIP, "80"])
    try:
        for jump in ("+1 hour", "-1 hour"):
            set_clock = f'date +%s; date -s "$(date -R -d "{jump}")" > /run/date; date +%s'
            before, after = board.board.run(set_clock).stdout.split()
            assert abs(int(after) - int(before)) > 3500
            board.served()
            assert client.poll() is None
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write("GET / HTTP/1.0\r\n\r\n")
        client.stdin.flush()
        assert "200" in client.stdout.readline()  # the connection from before is the same one still
    finally:
        client.kill()
        client.wait()


def holding(board: Home, command: list[str]) -> subprocess.Popen[str]:
    """A connection that a client of the LAN holds open."""
    process = subprocess.Popen(
        board.lab.client(1).enter(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "succeeded" in process.stderr.readline()
    return process


def crowd(count: int) -> Iterator[Object]:
    """Objects of a cluster far larger than a home's: pods of another node, and a Service for every fourth."""
    for number in range(count):
        address = f"10.244.{100 + number // 250}.{2 + number % 250}"
        name = f"other-{number}"
        pod = pods.pod_object("n9", "crowd", name, {"app": f"app-{number % (count // 4)}"}, ["true"], {}, False)
        pod["status"] = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        yield pod
        if number % 4 == 0:
            spec = {"selector": {"app": f"app-{number // 4}"}, "ports": [{"port": 80}]}
            metadata = {"name": f"app-{number // 4}", "namespace": "crowd"}
            yield {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def test_each_unit_keeps_well_below_its_memory_limit(board: Home) -> None:
    many = {"apiVersion": "v1", "kind": "List", "items": list(crowd(1000))}
    arrive = "cd /etc/netstack/manifests && cat > .crowd && mv .crowd crowd.json"
    board.board.run(arrive, stdin=json.dumps(many))
    try:
        wait_until(lambda: board.entries("identities") > 1000, "all pods to be known", 180)
        board.served()
        board.ready()
        for daemon in DAEMONS:
            group = f"/sys/fs/cgroup/system.slice/netstack-{daemon}.service"
            limit, peak = map(int, board.board.run(f"cat {group}/memory.max {group}/memory.peak").stdout.split())
            events = dict(line.split() for line in board.board.run(f"cat {group}/memory.events").stdout.splitlines())
            assert (events["oom_kill"], events["max"]) == ("0", "0"), daemon
            assert peak < 0.7 * limit, f"{daemon}: {peak >> 20} of {limit >> 20} MiB"
    finally:
        board.board.run("rm /etc/netstack/manifests/crowd.json")
    wait_until(lambda: board.entries("identities") < 1000, "all pods to be forgotten", 180)


def assert_the_uplink_is(board: Home, uplink: str, cards: set[str]) -> None:
    """The programs are on the uplink, and no longer on what is below it."""
    assert "netstack/uplink_ingress" in board.filters(uplink)
    assert {card for card in cards if "netstack" in board.filters(card)} == set()
    board.served()


def test_a_vlan_may_be_the_uplink(board: Home) -> None:
    board.rewire(TO_VLAN.format(address=board.board.address))
    with tagged(board.lab.names, board.board.port.link, 10):
        board.answers()
        assert board.site(netstack_uplink="eth0.10") > 0
        assert_the_uplink_is(board, "eth0.10", {"eth0"})
        board.rewire(FROM_VLAN.format(address=board.board.address))
    board.answers()


def test_a_bond_may_be_the_uplink_and_one_of_its_cards_may_fail(board: Home) -> None:
    board.rewire(TO_BOND.format(address=board.board.address))
    board.answers()
    assert board.site(netstack_uplink="bond0") > 0
    assert_the_uplink_is(board, "bond0", {"eth0", "eth1"})
    board.board.run("ip link set eth0 down")
    board.served()
