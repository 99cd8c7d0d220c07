"""A home with one board: what the tests of a booted board of either architecture do to it and ask of it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab import Lab, inventory, pods
from lab.objects import Object
from lab.router import HOME_INGRESS
from lab.shell import wait_until

from .board import Board, BoardPod, join
from .guest import REPOSITORY

VIP = "192.168.86.7"
SERVICE: Object = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {
        "type": "LoadBalancer",
        "loadBalancerIP": VIP,
        "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}],
    },
}
POOL: Object = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "IPAddressPool",
    "metadata": {"name": "home", "namespace": "metallb-system"},
    "spec": {"addresses": [f"{VIP}/32", f"{HOME_INGRESS}/32"]},
}
ANNOUNCED: Object = {
    "apiVersion": "metallb.io/v1beta1",
    "kind": "L2Advertisement",
    "metadata": {"name": "home", "namespace": "metallb-system"},
}
SERVE = ["python3", "/opt/lab/share/answer.py", "--name", "web", "--http", "8080"]


@dataclass(slots=True)
class Home:
    lab: Lab
    board: Board
    pod: BoardPod

    def site(self, **variables: str) -> int:
        """Runs the whole playbook on the board; returns how many tasks changed something."""
        hosts = self.lab.names.run / "inventory/hosts.yml"
        inventory.write(self.lab.names, [self.board], {}, hosts)
        chosen = [f"--extra-vars={name}={value}" for name, value in variables.items()]
        command = [str(REPOSITORY / "tests/playbook.sh"), "playbooks/site.yml", "-i", str(hosts), *chosen]
        ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, check=False)
        assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-1000:]
        (changed,) = re.findall(rf"{self.board.name} .* changed=(\d+)", ran.stdout)
        return int(changed)

    def apply(self, *objects: Object) -> None:
        self.lab.apply(objects)
        self.board.take(self.lab.names.manifests)

    def serve(self) -> None:
        """Start the pod that stands behind the Service, and wait until the LAN reaches it."""
        ports = {"http": 8080}
        self.apply(pods.pod_object(self.board.name, "shop", "web", {"app": "web"}, SERVE, ports, False))
        self.pod.start()
        self.apply()
        self.served()

    def served(self) -> None:
        """The address is answered by the board alone, and leads to the pod."""
        client = self.lab.client(1)
        wait_until(lambda: client.arp(VIP, timeout_s=2) == {self.board.mac}, f"the board to answer for {VIP}", 300)
        wait_until(lambda: client.get(f"http://{VIP}/", timeout_s=5).status == 200, "the pod to be reached", 300)

    def ready(self) -> None:
        wait_until(lambda: self.board.run("netstack status", check=False).returncode == 0, "the board to be ready", 180)

    def entries(self, table: str) -> int:
        """How many entries a table of the board's kernel has, by its own account."""
        status = json.loads(self.board.run("netstack status --json", check=False).stdout)
        return int(status["maps"][table]["entries"])

    def modules(self) -> set[str]:
        loaded = self.board.run("cat /proc/modules").stdout.splitlines()
        return {line.split()[0] for line in loaded}

    def filters(self, device: str) -> str:
        return self.board.run(f"tc filter show dev {device} ingress; tc filter show dev {device} egress").stdout

    def rewire(self, script: str) -> None:
        """Begin to change the board's network from inside: the connection by which this is asked for may end."""
        self.board.run("cat > /run/rewire && systemd-run --quiet sh -e /run/rewire", stdin=script)

    def answers(self) -> None:
        """Wait until the board is reached, in whatever way it is connected now."""
        wait_until(lambda: self.board.run("true", check=False).returncode == 0, "the board to answer", 120)


@contextmanager
def home(prefix: str, architecture: str) -> Iterator[Home]:
    with Lab(prefix, nodes=1) as lab:
        board = join(lab, architecture)
        lab.apply([POOL, ANNOUNCED, SERVICE])
        yield Home(lab, board, BoardPod(board, lab.api, "shop", "web"))
