"""A pod attacks while every daemon is killed, again and again, and while netstack is removed: nothing opens."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.demo import LISTED, VIP, Home, reaches, site, wait_ready
from e2e.test_upgrade import GAP_MS, steady
from instruments.attacks import FROM_A_POD, MARK, Scene
from instruments.watch import Watch, sending
from lab.node import Node
from lab.pods import CLUSTER_DNS, Pod
from lab.router import ATTACKER
from lab.shell import wait_until

pytestmark = [pytest.mark.root, pytest.mark.lab]

UNITS = ("agent", "dns", "observer", "announcer", "ingress", "haproxy")
KILLS = 3


def scene(home: Home, pod: Pod, victim: Pod) -> Scene:
    here, there = (str(side["mac"]) for side in pod.sandbox.result["interfaces"])
    others = [node.address for node in home.lab.nodes if node.name != pod.node]
    node = home.lab.node(pod.node).address
    client = home.lab.client(1).port.address
    return Scene(
        there, here, pod.address, victim.address, victim.address, others[0], node, others[1], client, CLUSTER_DNS, VIP
    )


@contextmanager
def attacking(home: Home, pod: Pod, victim: Pod) -> Iterator[None]:
    """Every attack that there is, round and round. Nothing of it arrives at the victim or on the wire."""
    allowed = f"(tcp port 443 and not host {ATTACKER}) or port 53"
    sent = f"ether src {home.lab.node(pod.node).mac} and not ({allowed})"
    attacks = scene(home, pod, victim)
    frames = [frame for attack in FROM_A_POD.values() for frame in attack(attacks)]
    watch = Watch(str(victim.netns))
    try:
        with home.lab.capture(pod.node, sent) as wire, sending(str(pod.netns), frames, 0.05):
            yield
        inside = watch.marked(MARK)
    finally:
        watch.close()
    assert inside == []
    denied = (MARK, socket.inet_aton(ATTACKER))
    assert [frame.hex() for frame in wire.frames() if any(mark in frame for mark in denied)] == []


def process(node: Node, unit: str) -> int:
    return int(node.run(f"systemctl show -P MainPID netstack-{unit}").stdout)


def test_killing_every_daemon_opens_nothing_and_breaks_nothing(home: Home) -> None:
    """Questions may stay unanswered while there is no proxy; what was learned stays open, and a stream goes on."""
    node = next(node for node in home.lab.nodes if node.name != home.assistant_node)
    pod = home.lab.pod(node.name, "openclaw", "steady", {"app": "openclaw"})
    victim = home.lab.pod(node.name, "openclaw", "victim", {"app": "scout"})
    killed: dict[str, list[int]] = {unit: [] for unit in UNITS}
    with attacking(home, pod, victim), steady(pod) as seen:
        for _ in range(KILLS):
            for unit, before in killed.items():
                wait_until(lambda: process(node, unit) not in (0, *before), f"{unit} to be back", 30)  # noqa: B023
                before.append(process(node, unit))
                node.run(f"systemctl kill --kill-whom=main --signal=KILL netstack-{unit}")
        wait_ready(node)
    reaches(pod, LISTED)
    pod.delete()
    victim.delete()
    assert all(len(set(before)) == KILLS for before in killed.values())
    assert seen["reached"] == 0, seen
    assert seen["gap_ms"] < GAP_MS, seen
    assert min(seen["echoes"], seen["probes"], seen["connections"], seen["look_ups"]) > 200, seen


@pytest.mark.parametrize("performance", ["directory"], indirect=True)
def test_removal_under_attack_opens_nothing(home: Home) -> None:
    """Not afterwards either: the pods are still there, without a device."""
    lab = home.lab
    node = next(node for node in lab.nodes if node.name != home.assistant_node)
    pod = lab.pod(node.name, "openclaw", "thief", {"app": "openclaw"})
    victim = lab.pod(node.name, "openclaw", "victim", {"app": "scout"})
    try:
        with attacking(home, pod, victim):
            site(lab, "--limit", node.name, playbook="remove.yml")
            left = pod.exec("ip -br link").stdout
    finally:
        site(lab, "--limit", node.name)
    wait_ready(node)
    pod.delete()
    victim.delete()
    for name in ("openclaw", "scout"):  # the home's own, on the same node: made anew, as after a drain
        getattr(home, name).delete()
        setattr(home, name, lab.pod(node.name, "openclaw", name, {"app": name}))
    assert "eth0" not in left
