"""A board that is nothing but a board: a machine of its own with the boards' kernel, under the whole playbook.

What nspawn's nodes cannot show, because they share the machine's kernel: modules, sysctls outside of the network,
cgroup v2 with its controllers, a clock of its own, VLANs and bonds. Interpreted, so it takes many minutes: for LONG=1.
The tests go on with one board, in this order.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from e2e.demo import MANIFESTS
from instruments.ingress_objects import endpoints, ingress, service
from kernel61.home import VIP, Home, home
from kernel61.tagged import tagged
from lab import network, objects, pods
from lab.objects import Object
from lab.router import ATTACKER, HOME_DOMAIN, INTERNET
from lab.shell import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("LONG") != "1", reason="many minutes of an interpreted machine: LONG=1"),
]

UNITS = ("agent", "announcer", "dns", "observer", "ingress", "haproxy")
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


(OUTSIDE,) = INTERNET["www.example.org"]
ECHO = "9000"


def only(client: str, server: str) -> Object:
    """The pod hears `client` and speaks to `server`, and has to do with nobody else."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "only", "namespace": "shop"},
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": f"{client}/32"}}]}],
            "egress": [{"to": [{"ipBlock": {"cidr": f"{server}/32"}}]}],
        },
    }


def test_a_clock_that_jumps_opens_nothing_and_silences_nothing(board: Home) -> None:
    """An hour ahead and back: deadlines of addresses, nodes and flows are of a clock that nobody sets.

    In both directions, connections from before last, and a peer that is denied is tried again and again meanwhile.
    """
    client, stranger = board.lab.client(1), board.lab.client(2)
    board.apply(only(client.address, OUTSIDE))
    refused = [
        lambda: stranger.get(f"http://{VIP}/").status == 0,
        lambda: board.pod.get(f"http://{ATTACKER}/").status == 0,
    ]
    for is_refused in refused:
        wait_until(is_refused, "the policy to be in force", 60)
    with ExitStack() as meanwhile:
        inward = meanwhile.enter_context(holding(client.enter, VIP, "80"))
        outward = meanwhile.enter_context(holding(board.pod.enter, OUTSIDE, ECHO))
        probes = [
            meanwhile.enter_context(trying(stranger.enter, VIP, "80")),
            meanwhile.enter_context(trying(board.pod.enter, ATTACKER, ECHO)),
        ]
        for jump in ("+1 hour", "-1 hour"):
            set_clock = f'date +%s; date -s "$(date -R -d "{jump}")" > /run/date; date +%s'
            before, after = board.board.run(set_clock).stdout.split()
            assert abs(int(after) - int(before)) > 3500
            board.served()
            assert board.pod.get(f"http://{OUTSIDE}/").status == 200
            assert all(is_refused() for is_refused in refused)
        assert [probe.poll() for probe in probes] == [None, None], "a probe got through"
        assert "200" in say(inward, "GET / HTTP/1.0\r\n\r\n")  # the connections from before are the same ones still
        assert say(outward, "still here\n") == "still here\n"
        board.lab.delete("NetworkPolicy", "shop", "only")
        board.apply()
        assert [probe.wait(60) for probe in probes] == [0, 0], "nothing but the policy was in the probes' way"


Enter = Callable[[Sequence[str]], list[str]]
"""The command line that runs a command at one end of a connection."""


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def holding(enter: Enter, address: str, port: str) -> Iterator[subprocess.Popen[str]]:
    """A connection that is held open."""
    with running(enter(["nc", "-v", "-w", "300", address, port])) as process:
        assert process.stderr is not None
        assert "succeeded" in process.stderr.readline()
        yield process


def trying(enter: Enter, address: str, port: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """One connection after the other is tried; ends, with code 0, with the first that is made."""
    return running(enter(["timeout", "300", "sh", "-c", f"until nc -z -w 1 {address} {port}; do :; done"]))


def say(process: subprocess.Popen[str], text: str) -> str:
    """What comes back first."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(text)
    process.stdin.flush()
    return process.stdout.readline()


def crowd(count: int, endpoint: str) -> Iterator[Object]:
    """Objects of a cluster far larger than a home's: Services and Ingresses, each with four pods of another node.

    What answers for each Service is at `endpoint`: HAProxy would be busy with looking for what is not there.
    """
    yield objects.node("n9", "192.168.86.29", "10.244.100.0/22")
    for number in range(count):
        name = f"app-{number}"
        for i in range(4):
            pod = pods.pod_object("n9", "crowd", f"{name}-{i}", {"app": name}, ["true"], {}, False)
            address = f"10.244.{100 + i}.{1 + number}"
            pod["status"] = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            yield pod
        yield service(name, 80, namespace="crowd", clusterIP=f"10.97.0.{number + 1}")
        yield from endpoints(name, endpoint, namespace="crowd")
        yield ingress(name, (f"{name}.{HOME_DOMAIN}", "/", name), namespace="crowd")


def test_each_unit_keeps_well_below_its_memory_limit(board: Home) -> None:
    def leads_to_the_pod(name: str) -> bool:
        return board.lab.client(1).get(f"http://{name}.{HOME_DOMAIN}/", timeout_s=5).status == 200

    board.lab.apply(MANIFESTS / "ingress-nginx.yaml")
    board.apply(ingress("web", (f"web.{HOME_DOMAIN}", "/", "web"), namespace="shop"))
    wait_until(lambda: leads_to_the_pod("web"), "HAProxy to be reached", 180)
    items = list(crowd(250, f"{board.pod.address}:8080"))
    arrive = "cd /etc/netstack/manifests && cat > .crowd && mv .crowd crowd.json"
    board.board.run(arrive, stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    try:
        wait_until(lambda: board.entries("identities") > 1000, "all pods to be known", 180)
        wait_until(lambda: leads_to_the_pod("app-249"), "HAProxy to have made room for all", 180)
        board.served()
        board.ready()
        for unit in UNITS:
            group = f"/sys/fs/cgroup/system.slice/netstack-{unit}.service"
            limit, peak = map(int, board.board.run(f"cat {group}/memory.max {group}/memory.peak").stdout.split())
            events = dict(line.split() for line in board.board.run(f"cat {group}/memory.events").stdout.splitlines())
            assert (events["oom_kill"], events["max"]) == ("0", "0"), unit
            assert peak < 0.7 * limit, f"{unit}: {peak >> 20} of {limit >> 20} MiB"
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
