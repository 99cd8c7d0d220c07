"""Budgets: each endpoint's flows are its own, whoever floods."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from bpf import packet as c
from bpf.packet import CLIENT, NEIGHBOUR, POD, SETTINGS, Packet
from instruments.depth import examples
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel.bpf import Map
from netstack.kernel.flows import FlowTables

pytestmark = pytest.mark.root
SERVER = "203.0.113.9"
BUDGET = SETTINGS.definition("flows").entries
FLOOD = max(2 * BUDGET, examples(25_000))
SOURCE_AT, DESTINATION_AT, PORT_AT = 26, 30, 34
"""Where in an Ethernet frame of IPv4 the addresses and the source port stand."""


def many(frame: bytes, count: int, at: int) -> Iterator[bytes]:
    """`frame` from or to so many addresses, each another flow. Checksums are not kept: no program reads them."""
    for number in range(count):
        yield frame[:at] + struct.pack("!I", 0xCB000000 + number) + frame[at + 4 :]


def from_ports(frame: bytes, ports: Iterable[int]) -> Iterator[bytes]:
    """`frame` from each of these ports."""
    for port in ports:
        yield frame[:PORT_AT] + struct.pack("!H", port) + frame[PORT_AT + 2 :]


def flood(node: Packet, program: str, frames: Iterable[bytes], device: int, came_by: int) -> dict[Verdict, int]:
    """What became of them."""
    before = node.counts()
    node.send(program, frames, device, came_by)
    return {verdict: after - before.get(verdict, 0) for verdict, after in node.counts().items()}


def neighbours_flows(node: Packet) -> None:
    """Of the pod that is to be left alone: one established, one half open, both ways."""
    for sport, answered in ((4000, True), (4001, False)):
        out = IP(src=NEIGHBOUR, dst=CLIENT) / TCP(sport=sport, dport=443, flags="S")
        assert node.from_pod(out, device=node.neighbour).verdict is Verdict.FORWARDED
        into = IP(src=CLIENT, dst=NEIGHBOUR) / TCP(sport=sport, dport=80, flags="S")
        assert node.to_pod(into, device=node.neighbour).verdict is Verdict.FORWARDED
        if answered:
            node.to_pod(IP(src=CLIENT, dst=NEIGHBOUR) / TCP(sport=443, dport=sport, flags="SA"), device=node.neighbour)
            node.from_pod(IP(src=NEIGHBOUR, dst=CLIENT) / TCP(sport=80, dport=sport, flags="SA"), device=node.neighbour)


def test_a_pods_flood_leaves_its_neighbours_flows_alone(node: Packet) -> None:
    neighbours_flows(node)
    before = node.flows(c.NEIGHBOUR_ID)
    assert len(before) == 4
    frame = Ether(src=c.POD_MAC, dst=c.HOST_MAC) / IP(src=POD, dst=CLIENT) / UDP(sport=4000, dport=53)
    became = flood(node, "pod_ingress", many(bytes(frame), FLOOD, DESTINATION_AT), node.pod, node.pod)
    assert became[Verdict.FORWARDED] == FLOOD, "a pod may do this to itself"
    assert BUDGET // 2 < len(node.flows()) <= BUDGET
    assert node.flows(c.NEIGHBOUR_ID) == before


def test_the_lans_flood_of_a_pod_leaves_its_neighbours_flows_alone(node: Packet) -> None:
    neighbours_flows(node)
    before = node.flows(c.NEIGHBOUR_ID)
    frame = Ether(src=c.HOST_MAC, dst=c.POD_MAC) / IP(src=CLIENT, dst=POD) / TCP(sport=4000, dport=80, flags="S")
    became = flood(node, "pod_egress", many(bytes(frame), 4 * BUDGET, SOURCE_AT), node.pod, node.uplink)
    assert became[Verdict.FORWARDED] == 4 * BUDGET
    assert len(node.flows()) <= BUDGET
    assert node.flows(c.NEIGHBOUR_ID) == before


def test_the_lans_flood_of_a_service_leaves_what_pods_asked_alone(node: Packet) -> None:
    node.service(c.VIP, 80, [(POD, 8080, c.NODE), (c.REMOTE, 8080, c.OTHER_NODE)], scope=l.SCOPE_WORLD)
    asked = IP(src=NEIGHBOUR, dst=SERVER) / TCP(sport=4000, dport=443, flags="S")
    node.from_pod(asked, device=node.neighbour)
    assert node.to_lan(asked, came_by=node.neighbour).verdict is Verdict.MASQUERADED
    before = node.entries("nat_pods")
    assert len(before) == 2
    frame = Ether(src=c.CLIENT_MAC, dst=c.NODE_MAC) / IP(src=CLIENT, dst=c.VIP) / TCP(sport=4000, dport=80, flags="S")
    most = SETTINGS.definition("nat").entries
    flood(node, "uplink_ingress", many(bytes(frame), 2 * most, SOURCE_AT), node.uplink, node.uplink)
    assert len(node.entries("nat")) > most // 2
    assert node.entries("nat_pods") == before


def test_a_pod_that_takes_every_port_towards_a_server_leaves_its_neighbour_some(node: Packet) -> None:
    frame = Ether(src=c.NODE_MAC, dst=c.CLIENT_MAC) / IP(src=POD, dst=SERVER) / TCP(sport=1, dport=443, flags="S")
    every = range(1024, 1024 + 2 * l.MASQUERADE_SHARED)
    became = flood(node, "uplink_egress", from_ports(bytes(frame), every), node.uplink, node.pod)
    assert became[Verdict.MASQUERADED] > l.MASQUERADE_SHARED and became[Verdict.NO_PORT] > 0
    frame[IP].src = NEIGHBOUR
    some = range(4000, 4000 + l.MASQUERADE_OWN // 2)
    became = flood(node, "uplink_egress", from_ports(bytes(frame), some), node.uplink, node.neighbour)
    assert became[Verdict.MASQUERADED] == len(some)


def test_what_is_denied_takes_no_room(node: Packet) -> None:
    node.endpoint(POD, c.POD_ID, c.POD_IDENTITY, enforce=l.ENFORCE_EGRESS)
    frame = Ether(src=c.POD_MAC, dst=c.HOST_MAC) / IP(src=POD, dst=CLIENT) / UDP(sport=4000, dport=53)
    became = flood(node, "pod_ingress", many(bytes(frame), 100, DESTINATION_AT), node.pod, node.pod)
    assert became[Verdict.DEFAULT_DENY] == 100
    assert node.flows() == {}


def test_an_endpoint_without_a_table_has_no_flows_and_gets_none(node: Packet) -> None:
    packet = IP(src=POD, dst=CLIENT) / TCP(sport=4000, dport=443, flags="S")
    assert node.from_pod(packet).verdict is Verdict.FORWARDED
    assert node.tables.remove(c.POD_ID) and not node.tables.remove(c.POD_ID)
    assert node.from_pod(packet).verdict is Verdict.MAP_FULL
    answer = IP(src=CLIENT, dst=POD) / TCP(sport=443, dport=4000, flags="SA")
    assert node.to_pod(answer).verdict is Verdict.MAP_FULL
    assert node.tables.add(c.POD_ID) and not node.tables.add(c.POD_ID)
    assert node.from_pod(packet).verdict is Verdict.FORWARDED


def test_tables_are_listed_with_their_endpoints() -> None:
    with SETTINGS.create("conntrack") as conntrack:
        tables = FlowTables(conntrack, SETTINGS.definition("flows"))
        for endpoint in (7, 9):
            tables.add(endpoint)
        assert tables.endpoints() == {7, 9}
        assert {endpoint: table.definition for endpoint, table in tables.all()} == dict.fromkeys(
            (7, 9), SETTINGS.definition("flows")
        )
        assert isinstance(tables.open(9), Map) and tables.open(8) is None
