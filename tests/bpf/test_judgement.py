"""Random clusters and policies: the real programs, over the compiled tables, let pass what a naive reading of the
manifests lets pass, packet by packet. (Against a model of the programs, many times more often: test_desired.py.)"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet as Frame

from bpf import packet as c
from bpf.packet import SHOT, Packet
from instruments import clusters
from instruments.cluster import Cluster
from instruments.clusters import Raw
from instruments.depth import examples
from instruments.reference import World
from netstack.agent.identities import RANGES_MATCH
from netstack.kernel import layout as l

pytestmark = pytest.mark.root
NODE = "192.168.86.21"


def transport(protocol: str, source_port: int, port: int) -> Frame:
    match protocol:
        case "ICMP":
            return ICMP(type=port, id=source_port)
        case "SCTP":
            return SCTP(sport=source_port, dport=port)
        case _:
            return {"TCP": TCP, "UDP": UDP}[protocol](sport=source_port, dport=port)


def install(node: Packet, cluster: Cluster) -> dict[str, int]:
    """The compiled tables, on the devices of the instrument: each local pod's."""
    node.reset()
    devices = dict(zip(clusters.OWN, (node.pod, node.neighbour), strict=True))
    for name in ("policy", "identities", "endpoints"):
        table = node.maps[name]
        table.delete_batch([key for key, _ in table.items()])
    for name in ("policy", "identities"):
        node.maps[name].put_batch(cluster.table(name).entries)
    for key, value in cluster.table("endpoints").entries.items():
        endpoint = l.Endpoint.unpack(value)
        device = next((devices[pod] for pod in clusters.OWN if cluster.address(pod) == key), 0)
        node.tables.add(endpoint.id)
        placed = replace(endpoint, ifindex=device, mac=c.mac(c.POD_MAC), host_mac=c.mac(c.HOST_MAC))
        node.put("endpoints", l.AddressKey(key), placed)
    return devices


@settings(
    max_examples=examples(20),
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=[Phase.generate],
)
@given(clusters.worlds(), st.sets(st.sampled_from(RANGES_MATCH)).map(frozenset))
def test_the_programs_pass_what_the_objects_say(
    node: Packet, manifests: list[Raw], ranges_match: frozenset[str]
) -> None:
    # Policies for the node itself have their own say on the way (test_host.py).
    manifests = [item for item in manifests if "nodeSelector" not in item.get("spec", {})]
    cluster = Cluster()
    cluster.place = replace(cluster.place, ranges_match=ranges_match)
    cluster.put(*manifests)
    for name in clusters.OWN:
        cluster.attach(name)
    assert not cluster.compile().accepted.refused
    devices = install(node, cluster)
    world = World(manifests, "n1", ranges_match)
    source_ports = itertools.count(20000)
    for pod, direction, peer in itertools.product(clusters.OWN, ("egress", "ingress"), clusters.PEERS):
        # 10.244.1.200 is nobody's of this node: it comes through no door. And pods speak IPv4.
        if peer in (pod, "10.244.1.200") or ":" in peer:
            continue
        packets = [(protocol, next(source_ports), port) for protocol, port in clusters.PACKETS]
        passed = run(node, devices, pod, direction, peer, packets)
        for (protocol, _, port), got in zip(packets, passed, strict=True):
            wanted = world.judge(pod, direction, peer, protocol, port)
            assert got == (wanted == "allowed"), f"{direction} of {pod}, {peer} {port}/{protocol}: reference {wanted}"


def run(
    node: Packet, devices: dict[str, int], pod: str, direction: str, peer: str, packets: list[tuple[Any, int, int]]
) -> list[bool]:
    """Whether each first packet (protocol, source port, port) passes the pod's own program."""
    own, other = clusters.ADDRESSES[pod], clusters.ADDRESSES.get(peer, peer)
    source, destination = (own, other) if direction == "egress" else (other, own)
    macs = (c.POD_MAC, c.HOST_MAC) if direction == "egress" else (c.HOST_MAC, c.POD_MAC)
    frames = [
        bytes(Ether(src=macs[0], dst=macs[1]) / IP(src=source, dst=destination) / transport(*packet))
        for packet in packets
    ]
    program = "pod_ingress" if direction == "egress" else "pod_egress"
    door = devices[pod] if direction == "egress" else devices.get(peer, 0 if peer == NODE else node.uplink)
    return [action != SHOT for action, _ in node._run(program, frames, devices[pod], door)]
