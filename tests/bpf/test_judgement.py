"""Random clusters and policies: the real programs, over the compiled tables, let pass what a naive reading of the
manifests lets pass, packet by packet. (Against a model of the programs, many times more often: test_desired.py.)"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bpf import packet as c
from bpf.judge import first, install, passed
from bpf.packet import Packet
from instruments import clusters
from instruments.cluster import Cluster
from instruments.clusters import Raw
from instruments.depth import SOAK, examples
from instruments.reference import World
from netstack.agent.identities import RANGES_MATCH

pytestmark = pytest.mark.root
NODE, THIRD_NODE, THIRD_NODE_MAC = "192.168.86.21", "192.168.86.23", "02:00:00:00:00:23"
NOBODY = "10.244.1.200"
"""An address of this node's own range: it comes through no door."""
KEPT = (("TCP", 22), ("TCP", 6443), ("TCP", 10250), ("UDP", 67), ("UDP", 68))
"""More to ask about the node: what no policy cuts it off from."""

Packets = tuple[tuple[str, int], ...]


@pytest.fixture
def placed(node: Packet) -> Iterator[Packet]:
    """The instrument, whose kernel knows all three nodes and a way to the world: what it cannot route is its own."""
    known = (
        ("neigh", THIRD_NODE, "lladdr", THIRD_NODE_MAC, "dev", "uplink"),
        ("route", "default", "via", "192.168.86.1"),
    )
    for kind, *what in known:
        node.namespace.ip(kind, "add", *what)
    try:
        yield node
    finally:
        for kind, *what in known:
            node.namespace.ip(kind, "del", *what)


@settings(
    max_examples=examples(20),
    derandomize=not SOAK,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],
)
@given(clusters.worlds(), st.sets(st.sampled_from(RANGES_MATCH)).map(frozenset))
def test_the_programs_pass_what_the_objects_say(
    placed: Packet, manifests: list[Raw], ranges_match: frozenset[str]
) -> None:
    cluster = Cluster()
    cluster.place = replace(cluster.place, ranges_match=ranges_match)
    cluster.put(*manifests)
    for name in clusters.OWN:
        cluster.attach(name)
    assert not cluster.compile().accepted.refused
    devices = dict(zip(clusters.OWN, (placed.pod, placed.neighbour), strict=True))
    placed.reset()
    install(placed, cluster, devices)
    world, way = World(manifests, "n1", ranges_match), Way(placed, devices)
    for who, direction, peer in itertools.product((*clusters.OWN, NODE), ("egress", "ingress"), clusters.PEERS):
        # What the node and its own pods say to one another is asked of the pods. And pods speak IPv4.
        if peer in (who, NOBODY) or ":" in peer or (who == NODE and peer in clusters.OWN):
            continue
        packets = (*clusters.PACKETS, *KEPT) if NODE in (who, peer) else clusters.PACKETS
        left = way.passing(who, direction, peer, packets)
        for protocol, port in packets:
            wanted = judged(world, who, direction, peer, protocol, port)
            told = f"{direction} of {who}, {peer} {port}/{protocol}: reference {wanted}"
            assert ((protocol, port) in left) == wanted, told


def judged(world: World, who: str, direction: str, peer: str, protocol: str, port: int) -> bool:
    """What the objects say of a first packet of the node itself or of a pod: a pod's to its own node is also the
    node's to judge."""
    if who == NODE:
        return world.judge_node(direction, peer, protocol, port) == "allowed"
    if world.judge(who, direction, peer, protocol, port) == "denied":
        return False
    return (direction, peer) != ("egress", NODE) or world.judge_node("ingress", who, protocol, port) == "allowed"


class Way:
    """The programs by which first packets go to and from the pods on these devices and the node itself."""

    def __init__(self, node: Packet, devices: dict[str, int]) -> None:
        self._node = node
        self._devices = devices
        self._source_ports = itertools.count(20000)

    def passing(self, who: str, direction: str, peer: str, packets: Packets) -> set[tuple[str, int]]:
        node, own, other = self._node, clusters.ADDRESSES.get(who, who), clusters.ADDRESSES.get(peer, peer)
        source, destination = (own, other) if direction == "egress" else (other, own)
        left = {(p, port): first(source, destination, p, next(self._source_ports), port) for p, port in packets}
        device, from_host = self._devices.get(who, 0), (c.HOST_MAC, c.POD_MAC)
        if direction == "egress":
            if who == NODE:
                return set(passed(node, "uplink_egress", left, node.uplink, 0, (c.NODE_MAC, neighbour(other))))
            return set(passed(node, "pod_ingress", left, device, device, (c.POD_MAC, c.HOST_MAC)))
        door = self._devices.get(peer, 0 if peer == NODE else node.uplink)
        if door == node.uplink:
            left = passed(node, "uplink_ingress", left, door, door, (neighbour(other), c.NODE_MAC))
        return set(left if who == NODE else passed(node, "pod_egress", left, device, door, from_host))


def neighbour(address: str) -> str:
    """The MAC from which what bears this address comes."""
    if address == THIRD_NODE:
        return THIRD_NODE_MAC
    return c.OTHER_NODE_MAC if address == c.OTHER_NODE or address.startswith("10.244.") else c.CLIENT_MAC
