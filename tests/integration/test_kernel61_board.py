"""A board that is nothing but a board: a machine of its own with the boards' kernel, under the whole playbook.

What nspawn's nodes cannot show, because they share the machine's kernel: modules, sysctls outside of the network,
cgroup v2 with its controllers, a clock of its own. Interpreted, so it takes many minutes: for LONG=1. The tests
go on with one board, in this order.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kernel61 import REPOSITORY
from kernel61.board import Board, BoardPod, join
from lab import Lab, inventory, pods
from lab.objects import Object
from lab.shell import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.lab,
    pytest.mark.skipif(os.environ.get("LONG") != "1", reason="many minutes of an interpreted machine: LONG=1"),
]

VIP = "192.168.86.7"
SERVICE: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
}
POOL: Object = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "IPAddressPool",
    "metadata": {"name": "home", "namespace": "metallb-system"},
    "spec": {"addresses": [f"{VIP}/32"]},
}
ANNOUNCED: Object = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "L2Advertisement",
    "metadata": {"name": "home", "namespace": "metallb-system"},
}
SERVE = ["python3", "/opt/lab/share/answer.py", "--name", "web", "--http", "8080"]
MODULES = {"sch_ingress", "cls_bpf", "veth", "nf_tproxy_ipv4"}


@dataclass(slots=True)
class Home:
    lab: Lab
    board: Board
    pod: BoardPod

    def site(self) -> None:
        """Runs the whole playbook on the board."""
        hosts = self.lab.names.run / "inventory/hosts.yml"
        inventory.write(self.lab.names, [self.board], {}, hosts)
        command = [REPOSITORY / "tests/playbook.sh", "playbooks/site.yml", "-i", hosts]
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-1000:]

    def apply(self, *objects: Object) -> None:
        self.lab.apply(objects)
        self.board.take(self.lab.names.manifests)

    def served(self) -> None:
        """The address is answered by the board alone, and leads to the pod."""
        client = self.lab.client(1)
        wait_until(lambda: client.arp(VIP, timeout_s=2) == {self.board.mac}, f"the board to answer for {VIP}", 90)
        wait_until(lambda: client.get(f"http://{VIP}/", timeout_s=5).status == 200, "the pod to be reached", 90)

    def modules(self) -> set[str]:
        loaded = self.board.run("cat /proc/modules").stdout.splitlines()
        return {line.split()[0] for line in loaded}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with Lab("board", nodes=1) as lab:
        board = join(lab)
        lab.apply([POOL, ANNOUNCED, SERVICE])
        yield Home(lab, board, BoardPod(board, lab.api, "shop", "web"))


def test_the_whole_playbook(home: Home) -> None:
    home.site()


def test_the_kernel_is_as_the_role_says(home: Home) -> None:
    assert home.modules() >= MODULES
    run = home.board.run
    assert run("uname -r").stdout.startswith("6.1.")
    assert run("sysctl -n kernel.unprivileged_bpf_disabled net.ipv4.ip_forward").stdout.split() == ["1", "1"]
    assert run("stat -f -c %T /sys/fs/cgroup").stdout.strip() == "cgroup2fs"


def test_a_pod_of_the_board_is_served_to_the_lan(home: Home) -> None:
    ports = {"http": 8080}
    home.apply(pods.pod_object(home.board.name, "shop", "web", {"app": "web"}, SERVE, ports, False))
    home.pod.start()
    home.apply()
    home.served()


def test_a_clock_that_jumps_opens_nothing_and_silences_nothing(home: Home) -> None:
    """An hour ahead and back: deadlines of addresses, nodes and flows are of a clock that nobody sets."""
    talk = ["nc", "-v", "-w", "60", VIP, "80"]
    client = holding(home, talk)
    try:
        for jump in ("+1 hour", "-1 hour"):
            set_clock = f'date +%s; date -s "$(date -R -d "{jump}")" > /run/date; date +%s'
            before, after = home.board.run(set_clock).stdout.split()
            assert abs(int(after) - int(before)) > 3500
            home.served()
            assert client.poll() is None
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write("GET / HTTP/1.0\r\n\r\n")
        client.stdin.flush()
        assert "200" in client.stdout.readline()  # the connection from before is the same one still
    finally:
        client.kill()
        client.wait()


def holding(home: Home, command: list[str]) -> subprocess.Popen[str]:
    """A connection that a client of the LAN holds open."""
    process = subprocess.Popen(
        home.lab.client(1).enter(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "succeeded" in process.stderr.readline()
    return process
