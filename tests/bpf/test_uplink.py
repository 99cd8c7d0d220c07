"""The door to the LAN: ARP for LoadBalancer addresses, services from outside, masquerade, both ways."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet as Frame
from scapy.packet import Raw

from bpf import packet as c
from bpf.packet import CLIENT, OK, POD, REDIRECT, VIP, Packet, Result
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l

pytestmark = pytest.mark.root
WORLD = "203.0.113.9"


def syn(dst: str = VIP, dport: int = 80, sport: int = 5000, flags: str = "S", src: str = CLIENT) -> IP:
    return IP(src=src, dst=dst) / TCP(sport=sport, dport=dport, flags=flags)


def here(node: Packet, **more: int) -> None:
    node.service(VIP, 80, [(POD, 8080, c.NODE)], scope=l.SCOPE_WORLD, **more)


def elsewhere(node: Packet, **more: int) -> None:
    node.service(VIP, 80, [(c.REMOTE, 8080, c.OTHER_NODE)], scope=l.SCOPE_WORLD, **more)


# ARP


def question(target: str = VIP, sender: str = CLIENT, op: int = 1) -> Ether:
    return Ether(src=c.CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=op, hwsrc=c.CLIENT_MAC, psrc=sender, pdst=target)


def test_arp_for_what_is_no_vip_is_the_kernels(node: Packet) -> None:
    for frame in (question(c.NODE), question(VIP), question("192.168.86.99")):
        result = node.from_lan(frame)
        assert (result.verdict, result.action) == (Verdict.FORWARDED, OK)


@pytest.mark.parametrize("deadline", [0, -1])
def test_a_vip_that_is_not_ours_is_silent(node: Packet, deadline: int) -> None:
    node.vip(VIP, deadline and c.monotonic_ns(deadline))
    assert node.from_lan(question()).verdict is Verdict.VIP_NOT_OWNED


def test_an_owned_vip_is_answered_until_the_deadline(node: Packet) -> None:
    node.vip(VIP, c.monotonic_ns(30))
    result = node.from_lan(question())
    assert (result.verdict, result.action) == (Verdict.ARP_ANSWERED, REDIRECT)
    reply = ARP(op=2, hwsrc=c.NODE_MAC, psrc=VIP, hwdst=c.CLIENT_MAC, pdst=CLIENT)
    assert bytes(result.frame) == bytes(Ether(src=c.NODE_MAC, dst=c.CLIENT_MAC) / reply)


def test_a_probe_for_an_owned_vip_is_answered(node: Packet) -> None:
    node.vip(VIP, c.monotonic_ns(30))
    assert node.from_lan(question(sender="0.0.0.0")).verdict is Verdict.ARP_ANSWERED


def test_anothers_announcement_is_no_question_but_the_announcer_sees_it(node: Packet) -> None:
    node.vip(VIP, c.monotonic_ns(30))
    result = node.from_lan(question(sender=VIP))
    assert (result.verdict, result.action) == (Verdict.FORWARDED, OK)


def test_arp_answers_from_the_lan_pass(node: Packet) -> None:
    node.vip(VIP, c.monotonic_ns(30))
    assert node.from_lan(question(op=2)).verdict is Verdict.FORWARDED


# the door


@pytest.mark.parametrize("source", [c.NODE, POD, "10.244.1.200"])
def test_our_own_addresses_do_not_come_from_the_lan(node: Packet, source: str) -> None:
    assert node.from_lan(syn(c.NODE, 22, src=source)).verdict is Verdict.SPOOFED


@pytest.mark.parametrize(("source", "destination"), [(CLIENT, "127.0.0.1"), ("127.0.0.1", c.NODE), ("127.1.2.3", POD)])
def test_loopback_addresses_do_not_come_from_the_lan(node: Packet, source: str, destination: str) -> None:
    """With route_localnet, which kube-proxy sets, the kernel would take them."""
    assert node.from_lan(IP(src=source, dst=destination) / UDP(dport=53)).verdict is Verdict.SPOOFED


def from_mac(source: str, packet: Frame) -> Ether:
    return Ether(src=source, dst=c.NODE_MAC) / packet


@pytest.mark.parametrize("destination", [POD, c.NODE, VIP])
@pytest.mark.parametrize("source", [c.REMOTE, "10.244.2.77", c.OTHER_NODE])
def test_a_nodes_addresses_are_believed_from_its_mac_alone(node: Packet, source: str, destination: str) -> None:
    here(node)
    packet = syn(destination, src=source)
    for liar in (c.CLIENT_MAC, "00:00:00:00:00:00", c.NODE_MAC, "02:00:00:00:00:23"):
        assert node.from_lan(from_mac(liar, packet)).verdict is Verdict.SPOOFED
    assert not node.from_lan(from_mac(c.OTHER_NODE_MAC, packet)).verdict.dropped


def test_ipv6_addresses_of_a_node_are_believed_from_its_mac_alone(node: Packet) -> None:
    packet = IPv6(src="fd00:2::77", dst="fd00:1::3") / TCP(flags="S")
    assert node.from_lan(from_mac(c.CLIENT_MAC, packet)).verdict is Verdict.SPOOFED
    assert node.from_lan(from_mac(c.OTHER_NODE_MAC, packet)).verdict is Verdict.FORWARDED


def test_the_gateways_address_and_our_own_ones_are_nobodys_on_the_lan(node: Packet) -> None:
    node.identity("192.168.87.21/32", l.IDENTITY_HOST, c.NODE)  # a second card's
    for source in (c.GATEWAY, "192.168.87.21"):
        assert node.from_lan(syn(c.NODE, src=source)).verdict is Verdict.SPOOFED


@pytest.fixture
def third(node: Packet) -> Iterator[str]:
    """A node whose MAC this one does not know yet."""
    node.identity("192.168.86.23/32", l.IDENTITY_REMOTE_NODE, "192.168.86.23")
    node.identity("10.244.3.0/24", l.IDENTITY_UNMANAGED, "192.168.86.23")
    node.namespace.ip("route", "add", "10.244.3.0/24", "via", "192.168.86.23")
    yield "192.168.86.23"
    node.namespace.ip("route", "del", "10.244.3.0/24")
    node.namespace.ip("neigh", "flush", "to", "192.168.86.23", "dev", "uplink", "nud", "all")


def test_until_its_mac_is_known_a_node_reaches_this_one_and_nothing_behind_it(node: Packet, third: str) -> None:
    here(node)
    node.service("", 30080, [(POD, 8080, c.NODE)], scope=l.SCOPE_WORLD, number=2)
    mac = "02:00:00:00:00:23"
    for _ in range(2):
        for packet in (
            syn(POD, src=third),
            syn(VIP, src=third),
            syn(c.NODE, 30080, src=third),
            syn(POD, src="10.244.3.9"),
        ):
            assert node.from_lan(from_mac(mac, packet)).verdict is Verdict.NO_NEIGHBOUR
        assert node.from_lan(from_mac(mac, syn(c.NODE, 22, src=third))).verdict is Verdict.FORWARDED
        node.namespace.ip("neigh", "replace", third, "dev", "uplink", "nud", "incomplete")  # asked, no answer yet
    node.namespace.ip("neigh", "replace", third, "lladdr", mac, "dev", "uplink")
    for packet in (syn(POD, src=third), syn(VIP, src=third), syn(POD, src="10.244.3.9")):
        assert not node.from_lan(from_mac(mac, packet)).verdict.dropped


def test_a_board_that_is_replaced_is_believed_as_soon_as_the_kernel_sends_to_it(node: Packet, third: str) -> None:
    for mac, other in (("02:00:00:00:00:23", "02:00:00:00:00:33"), ("02:00:00:00:00:33", "02:00:00:00:00:23")):
        node.namespace.ip("neigh", "replace", third, "lladdr", mac, "dev", "uplink")
        assert node.from_lan(from_mac(mac, syn(POD, src="10.244.3.9"))).verdict is Verdict.FORWARDED
        assert node.from_lan(from_mac(other, syn(POD, src="10.244.3.9"))).verdict is Verdict.SPOOFED


def test_a_node_behind_a_router_is_believed_from_the_routers_mac(node: Packet, third: str) -> None:
    node.namespace.ip("route", "replace", "10.244.3.0/24", "via", c.OTHER_NODE)
    assert node.from_lan(from_mac(c.OTHER_NODE_MAC, syn(POD, src="10.244.3.9"))).verdict is Verdict.FORWARDED
    assert node.from_lan(from_mac("02:00:00:00:00:23", syn(POD, src="10.244.3.9"))).verdict is Verdict.SPOOFED


def test_neighbours_may_find_one_another(node: Packet) -> None:
    node.identity("fd00::22/128", l.IDENTITY_REMOTE_NODE, c.OTHER_NODE)
    solicitation = IPv6(src="fd00::22", dst="ff02::1:ff00:21", hlim=255) / ICMPv6ND_NS(tgt="fd00::21")
    assert node.from_lan(from_mac("02:00:00:00:00:99", solicitation)).verdict is Verdict.FORWARDED
    solicitation.hlim = 254  # a router forwarded it: it is not from this LAN
    assert node.from_lan(from_mac("02:00:00:00:00:99", solicitation)).verdict is Verdict.SPOOFED


@pytest.mark.parametrize("known", [True, False])
def test_who_has_no_address_yet_may_ask_for_one(node: Packet, known: bool) -> None:
    """Duplicate address detection (RFC 4862 section 5.4) comes from ::, which a node without IPv6 has as its own."""
    if not known:
        node.put("config", l.Number(0), l.Config(pack(c.NODE), pack("10.244.1.0"), 120, uplink=node.uplink))
    question = IPv6(src="::", dst="ff02::1:ff00:21", hlim=255) / ICMPv6ND_NS(tgt="fd00::21")
    assert node.from_lan(from_mac("02:00:00:00:00:99", question)).verdict is Verdict.FORWARDED


def test_a_frame_for_another_host_is_left_alone(node: Packet) -> None:
    """A bridge floods them when a node's port dies: every node that is left would serve the same packet."""
    here(node)
    result = node.from_lan(Ether(src=c.CLIENT_MAC, dst="02:00:00:00:00:99") / syn())
    assert (result.verdict, result.action) == (Verdict.FORWARDED, OK)
    assert node.from_lan(syn()).action == REDIRECT


def test_other_traffic_is_the_kernels(node: Packet) -> None:
    elsewhere(node)
    for packet in (
        syn(c.NODE, 22),
        syn(c.NODE, 50000),
        IP(src=CLIENT, dst=c.NODE) / ICMP(),
        IP(src=CLIENT, dst=c.NODE, frag=9) / Raw(b"x" * 9),
        IP(src=CLIENT, dst="10.244.1.99") / TCP(),  # no pod has it: the kernel says so
        IPv6(src="fd00:9::1", dst="fd00::21") / TCP(),
    ):
        result = node.from_lan(packet)
        assert (result.verdict, result.action) == (Verdict.FORWARDED, OK)


# into a pod


def assert_delivered(result: Result, verdict: Verdict = Verdict.TRANSLATED) -> None:
    """To the pod's device, past the stack, as a router would have forwarded it. Its program sees it next."""
    assert (result.verdict, result.action) == (verdict, REDIRECT)
    assert (result.frame.src, result.frame.dst) == (c.HOST_MAC, c.POD_MAC)


@pytest.mark.parametrize(
    "packet",
    [
        Ether(src=c.OTHER_NODE_MAC, dst=c.NODE_MAC) / IP(src=c.REMOTE, dst=POD, ttl=9) / TCP(),
        Ether(src=c.CLIENT_MAC, dst=c.NODE_MAC) / IP(src=CLIENT, dst=POD, ttl=9) / UDP() / Raw(b"x" * 1400),
        Ether(src=c.CLIENT_MAC, dst=c.NODE_MAC) / IPv6(src="fd00:9::1", dst="fd00:1::3", hlim=9) / TCP(),
    ],
    ids=str,
)
def test_what_is_for_a_pod_goes_straight_to_it(node: Packet, packet: Ether) -> None:
    result = node.from_lan(packet)
    assert_delivered(result, Verdict.FORWARDED)
    network = result.frame.payload
    assert getattr(network, "ttl", None) == 8 or network.hlim == 8


@pytest.mark.parametrize(
    "packet", [IP(src=CLIENT, dst=POD, ttl=1) / TCP(), IP(src=CLIENT, dst=POD) / UDP() / Raw(bytes(1600))]
)
def test_what_a_router_has_to_answer_is_the_kernels(node: Packet, packet: IP) -> None:
    result = node.from_lan(packet)
    assert (result.verdict, result.action) == (Verdict.FORWARDED, OK)


def test_an_empty_node_touches_nothing(node: Packet) -> None:
    node.put("config", l.Number(0), l.Config())
    assert node.from_lan(syn()).action == OK
    assert node.to_lan(syn(src=POD)).action == OK


# services


def test_nothing_but_service_ports_exists_at_a_service_address(node: Packet) -> None:
    here(node)
    for packet in (
        syn(dport=81),
        IP(src=CLIENT, dst=VIP) / UDP(dport=80),
        IP(src=CLIENT, dst=VIP) / ICMP(id=1),
    ):
        assert node.from_lan(packet).verdict is Verdict.NO_SERVICE
    assert node.from_lan(IP(src=CLIENT, dst=VIP, frag=9) / Raw(b"x" * 9)).verdict is Verdict.FRAGMENT


def test_an_allocated_vip_without_a_service_is_not_routed(node: Packet) -> None:
    node.vip(VIP, 0)
    assert node.from_lan(syn()).verdict is Verdict.NO_SERVICE


def test_a_cluster_address_is_nothing_to_the_lan(node: Packet) -> None:
    node.service(c.SERVICE, 80, [(POD, 8080, c.NODE)])
    assert node.from_lan(syn(c.SERVICE)).frame[IP].dst == c.SERVICE


def test_a_service_without_backends_drops(node: Packet) -> None:
    node.service(VIP, 80, [], scope=l.SCOPE_WORLD)
    assert node.from_lan(syn()).verdict is Verdict.NO_BACKEND


def test_a_backend_outside_the_cluster_is_not_served_to_the_lan(node: Packet) -> None:
    node.service(VIP, 80, [(WORLD, 80, "")], scope=l.SCOPE_WORLD)
    assert node.from_lan(syn()).verdict is Verdict.UNSUPPORTED


def test_a_backend_here_keeps_the_client_and_answers_as_the_service(node: Packet) -> None:
    here(node)
    result = node.from_lan(syn())
    assert_delivered(result)
    assert (result.frame[IP].src, result.frame[IP].dst, result.frame[TCP].dport) == (CLIENT, POD, 8080)
    assert node.to_pod(result.frame.payload).verdict is Verdict.FORWARDED
    answer = IP(src=POD, dst=CLIENT) / TCP(sport=8080, dport=5000, flags="SA")
    assert node.from_pod(answer).verdict is Verdict.REPLY
    leaves = node.to_lan(answer, came_by=node.pod)
    assert leaves.verdict is Verdict.TRANSLATED
    assert (leaves.frame[IP].src, leaves.frame[TCP].sport, leaves.frame[IP].dst) == (VIP, 80, CLIENT)


def test_a_backend_on_the_hosts_network_answers_as_the_service(node: Packet) -> None:
    node.service(VIP, 80, [(c.NODE, 8123, c.NODE)], scope=l.SCOPE_WORLD)
    result = node.from_lan(syn())
    assert (result.frame[IP].dst, result.frame[TCP].dport) == (c.NODE, 8123)
    leaves = node.to_lan(IP(src=c.NODE, dst=CLIENT) / TCP(sport=8123, dport=5000, flags="SA"))
    assert (leaves.frame[IP].src, leaves.frame[TCP].sport) == (VIP, 80)
    other = node.to_lan(IP(src=c.NODE, dst=CLIENT) / TCP(sport=8123, dport=5001, flags="SA"))
    assert (other.verdict, other.frame[IP].src) == (Verdict.FORWARDED, c.NODE)  # came to the node's own address


def test_a_backend_elsewhere_gets_the_packet_unchanged(node: Packet) -> None:
    elsewhere(node)
    sent = syn()
    sent.ttl = 64
    result = node.from_lan(sent)
    assert (result.verdict, result.action) == (Verdict.FORWARDED, REDIRECT)
    sent.ttl = 63
    assert bytes(result.frame[IP]) == bytes(sent)
    passing = node.to_lan(result.frame.payload, came_by=node.uplink)
    assert passing.verdict is Verdict.FORWARDED  # our own egress program leaves it alone


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_without_hops_left_ends_here(node: Packet, ttl: int) -> None:
    elsewhere(node)
    packet = syn()
    packet.ttl = ttl
    assert node.from_lan(packet).verdict is Verdict.TTL_EXCEEDED


@pytest.mark.parametrize("address", [c.NODE, c.OTHER_NODE])
def test_a_node_port(node: Packet, address: str) -> None:
    node.service("", 30080, [(POD, 8080, c.NODE)], scope=l.SCOPE_WORLD)
    result = node.from_lan(syn(address, 30080))
    assert (result.frame[IP].dst, result.frame[TCP].dport) == (POD, 8080)
    leaves = node.to_lan(IP(src=POD, dst=CLIENT) / TCP(sport=8080, dport=5000, flags="SA"))
    assert (leaves.frame[IP].src, leaves.frame[TCP].sport) == (address, 30080)


def backends(node: Packet, count: int = 8) -> None:
    rows = [(f"10.244.{1 + i % 2}.{50 + i}", 8080, (c.NODE, c.OTHER_NODE)[i % 2]) for i in range(count)]
    node.service(VIP, 80, rows, scope=l.SCOPE_WORLD)


def where(node: Packet, sport: int, **more: str) -> str:
    result = node.from_lan(syn(sport=sport, **more))
    assert not result.verdict.dropped
    return result.frame[IP].dst


def test_connections_spread_and_a_connection_stays(node: Packet) -> None:
    backends(node)
    ports = range(5000, 5200)
    first = node.many_from_lan(syn(), ports)
    assert set(first) >= {f"10.244.1.{50 + i}" for i in (0, 2, 4, 6)}
    assert first == node.many_from_lan(syn(flags="A"), ports)
    assert first[0] == where(node, 5000, flags="A")


def test_with_affinity_a_client_keeps_one_backend(node: Packet) -> None:
    rows = [(f"10.244.1.{50 + i}", 8080, c.NODE) for i in range(8)]
    node.service(VIP, 80, rows, scope=l.SCOPE_WORLD, affinity_s=10800)
    clients = [f"192.168.86.{100 + i}" for i in range(40)]
    taken = {client: set(node.many_from_lan(syn(src=client), range(5000, 5005))) for client in clients}
    assert all(len(backends) == 1 for backends in taken.values())
    assert len(set().union(*taken.values())) > 4


def test_a_connection_keeps_its_backend_when_the_table_changes(node: Packet) -> None:
    backends(node)
    first = node.many_from_lan(syn(), range(5000, 5040))
    for slot in range(16, 24):
        node.put("slots", l.Number(slot), l.Number(17))  # everything new goes to the first backend
    assert first == node.many_from_lan(syn(flags="A"), range(5000, 5040))
    assert set(node.many_from_lan(syn(), range(6000, 6020))) == {"10.244.1.50"}


def test_a_connection_to_a_backend_that_is_gone_moves(node: Packet) -> None:
    here(node)
    assert where(node, 5000) == POD
    node.maps["backends"].delete(l.Number(17).pack())
    node.service(VIP, 80, [(c.NEIGHBOUR, 8080, c.NODE)], scope=l.SCOPE_WORLD, number=2)
    assert where(node, 5000) == c.NEIGHBOUR


def test_a_connection_waits_for_a_backend_that_serves_nobody_and_datagrams_do_not(node: Packet) -> None:
    """Nor does who begins anew from its port, after a crash. Both would have to be silent until they are forgotten."""
    for number, protocol, wire in ((1, UDP, 17), (2, TCP, 6)):
        node.service(VIP, 80, [(POD, 8080, c.NODE)], scope=l.SCOPE_WORLD, protocol=wire, number=number)
        first = IP(src=CLIENT, dst=VIP) / protocol(sport=5000, dport=80)
        assert node.from_lan(first).frame[IP].dst == POD
        node.put("backends", l.Number(100), l.Backend(pack(c.NEIGHBOUR), pack(c.NODE), 8080))
        node.put("slots", l.Number(number * 16), l.Number(100))
        assert node.from_lan(first).frame[IP].dst == POD
        silent = l.Backend(pack(POD), pack(c.NODE), 8080, l.BACKEND_SILENT)
        node.put("backends", l.Number(number * 16 + 1), silent)
        if protocol is TCP:
            assert node.from_lan(syn(flags="A")).frame[IP].dst == POD
        assert node.from_lan(first).frame[IP].dst == c.NEIGHBOUR
    assert node.from_lan(syn(flags="A")).frame[IP].dst == c.NEIGHBOUR


def test_a_dead_nodes_backends_are_skipped(node: Packet) -> None:
    backends(node)
    node.put("node_alive", l.AddressKey(pack(c.OTHER_NODE)), l.Instant(c.monotonic_ns(-1)))
    assert VIP in node.many_from_lan(syn(), range(5000, 5040))  # our own entry is not fresh: no evidence
    node.put("node_alive", l.AddressKey(pack(c.NODE)), l.Instant(c.monotonic_ns(30)))
    assert VIP not in node.many_from_lan(syn(), range(6000, 6040))
    assert VIP not in node.many_from_lan(syn(flags="A"), range(5000, 5040))  # pins to it move too


def test_when_all_are_dead_one_is_tried(node: Packet) -> None:
    elsewhere(node)
    node.put("node_alive", l.AddressKey(pack(c.OTHER_NODE)), l.Instant(c.monotonic_ns(-1)))
    node.put("node_alive", l.AddressKey(pack(c.NODE)), l.Instant(c.monotonic_ns(30)))
    assert node.from_lan(syn()).action == REDIRECT


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_one_client_port_reaches_one_backend_through_two_services(node: Packet, protocol: type[Frame]) -> None:
    """To the backend both would look alike, so the second client's port is another one there."""
    number = 6 if protocol is TCP else 17
    first, second = VIP, "192.168.86.19"
    for identifier, address in enumerate((first, second), 1):
        node.service(address, 80, [(POD, 8080, c.NODE)], scope=l.SCOPE_WORLD, protocol=number, number=identifier)
    ports = []
    for address in (first, second, first, second):
        sent = node.from_lan(IP(src=CLIENT, dst=address) / protocol(sport=5000, dport=80))
        assert_delivered(sent)
        node.to_pod(sent.frame.payload)
        assert (sent.frame[IP].dst, sent.frame[protocol].dport) == (POD, 8080)
        ports.append(sent.frame[protocol].sport)
        answer = IP(src=POD, dst=CLIENT) / protocol(sport=8080, dport=ports[-1])
        if protocol is TCP:
            answer[TCP].flags = "SA"
        assert node.from_pod(answer).verdict is Verdict.REPLY
        leaves = node.to_lan(answer, came_by=node.pod).frame
        assert (leaves[IP].src, leaves[protocol].sport, leaves[protocol].dport) == (address, 80, 5000)
    assert ports[0] == ports[2] == 5000 and ports[1] == ports[3] != 5000 and ports[1] >= 1024


def test_an_error_finds_the_port_that_was_changed(node: Packet) -> None:
    for identifier, address in ((1, VIP), (2, "192.168.86.19")):
        node.service(address, 80, [(POD, 8080, c.NODE)], scope=l.SCOPE_WORLD, number=identifier)
        given = node.from_lan(syn(address)).frame[TCP].sport
    assert given != 5000
    quoted = IP(src="192.168.86.19", dst=CLIENT) / TCP(sport=80, dport=5000, flags="A")
    result = node.from_lan(IP(src="192.168.86.1", dst="192.168.86.19") / ICMP(type=3, code=4) / quoted)
    assert_delivered(result)
    assert (result.frame["TCP in ICMP"].sport, result.frame["TCP in ICMP"].dport) == (8080, given)


def test_a_connection_that_is_over_leaves_nothing(node: Packet) -> None:
    """Its last acknowledgement takes its entries away, those of the pod's flows too; an earlier one does not."""
    here(node)

    def client(flags: str, seq: int, ack: int = 0, data: bytes = b"") -> None:
        packet = IP(src=CLIENT, dst=VIP) / TCP(sport=5000, dport=80, flags=flags, seq=seq, ack=ack) / Raw(data)
        sent = node.from_lan(packet)
        assert_delivered(sent)
        assert not node.to_pod(sent.frame.payload).verdict.dropped

    def server(flags: str, seq: int, ack: int, data: bytes = b"") -> None:
        packet = IP(src=POD, dst=CLIENT) / TCP(sport=8080, dport=5000, flags=flags, seq=seq, ack=ack) / Raw(data)
        assert not node.from_pod(packet).verdict.dropped
        assert node.to_lan(packet, came_by=node.pod).frame[IP].src == VIP

    client("S", 100)
    server("SA", 4294967290, 101)  # its numbers wrap round
    client("A", 101, 4294967291)
    client("FPA", 101, 4294967291, b"question")
    server("A", 4294967291, 110, b"first")
    server("FPA", 0, 110, b"second")
    client("A", 110, 0)  # the first part only: the rest was lost
    assert len(node.entries("nat")) == 2 and len(node.flows()) == 1
    server("FPA", 0, 110, b"second")
    client("A", 110, 7)
    assert node.entries("nat") == {} and node.flows() == {}


def test_a_masqueraded_connection_that_is_over_leaves_no_translation(node: Packet) -> None:
    def pod(flags: str, seq: int, ack: int = 0) -> Frame:
        packet = IP(src=POD, dst=WORLD) / TCP(sport=4000, dport=443, flags=flags, seq=seq, ack=ack)
        assert not node.from_pod(packet).verdict.dropped
        return node.to_lan(packet, came_by=node.pod).frame

    port = pod("S", 10)[TCP].sport

    def world(flags: str, seq: int, ack: int) -> None:
        packet = IP(src=WORLD, dst=c.NODE) / TCP(sport=443, dport=port, flags=flags, seq=seq, ack=ack)
        assert_delivered(node.from_lan(packet))

    world("SA", 50, 11)
    pod("FA", 11, 51)
    world("FA", 51, 12)
    assert len(node.entries("nat_pods")) == 2
    pod("A", 12, 52)
    assert node.entries("nat_pods") == {}


def test_what_was_lost_of_an_answer_comes_though_both_sides_have_closed(node: Packet) -> None:
    """The pod closed its half behind its question; the world's FIN came, and not what is before it."""

    def pod(flags: str, seq: int, ack: int = 0) -> Frame:
        packet = IP(src=POD, dst=WORLD) / TCP(sport=4000, dport=443, flags=flags, seq=seq, ack=ack)
        return node.to_lan(packet, came_by=node.pod).frame

    port = pod("S", 10)[TCP].sport

    def world(flags: str, seq: int, ack: int, data: bytes = b"") -> None:
        packet = IP(src=WORLD, dst=c.NODE) / TCP(sport=443, dport=port, flags=flags, seq=seq, ack=ack) / Raw(data)
        assert_delivered(node.from_lan(packet))

    world("SA", 50, 11)
    pod("FA", 11, 51)
    world("A", 51, 12)
    world("FA", 1051, 12)
    pod("A", 12, 51)
    for seq in (51, 551):
        world("A", seq, 12, b"x" * 500)
    pod("A", 12, 1052)
    assert node.entries("nat_pods") == {}


def test_an_error_about_an_answer_finds_the_backend(node: Packet) -> None:
    here(node)
    node.from_lan(syn())
    quoted = IP(src=VIP, dst=CLIENT) / TCP(sport=80, dport=5000, flags="A")
    error = IP(src="192.168.86.1", dst=VIP) / ICMP(type=3, code=4, nexthopmtu=1400) / quoted
    result = node.from_lan(error)
    assert_delivered(result)
    assert result.frame[IP].dst == POD
    assert (result.frame["IP in ICMP"].src, result.frame["TCP in ICMP"].sport) == (POD, 8080)
    assert node.to_pod(result.frame.payload).verdict is Verdict.DEFAULT_DENY  # its SYN never reached the pod's door
    stray = IP(src="192.168.86.1", dst=VIP) / ICMP(type=3, code=4) / (IP(src=VIP, dst=WORLD) / TCP(sport=80, dport=9))
    assert node.from_lan(stray).verdict is Verdict.NO_SERVICE


def test_an_error_from_a_backend_leaves_as_the_services(node: Packet) -> None:
    node.service(VIP, 53, [(POD, 5353, c.NODE)], scope=l.SCOPE_WORLD, protocol=17)
    node.from_lan(IP(src=CLIENT, dst=VIP) / UDP(sport=5000, dport=53))
    error = IP(src=POD, dst=CLIENT) / ICMP(type=3, code=3) / (IP(src=CLIENT, dst=POD) / UDP(sport=5000, dport=5353))
    result = node.to_lan(error)
    assert (result.frame[IP].src, result.frame["IP in ICMP"].dst, result.frame["UDP in ICMP"].dport) == (VIP, VIP, 53)


# masquerade


def test_what_stays_in_the_cluster_is_not_masqueraded(node: Packet) -> None:
    for peer in (c.REMOTE, "10.244.2.200", c.OTHER_NODE):
        assert node.to_lan(syn(peer, src=POD)).verdict is Verdict.FORWARDED
    assert node.to_lan(syn(WORLD, src=c.NODE)).verdict is Verdict.FORWARDED


@pytest.mark.parametrize("protocol", ["tcp", "udp", "ping"])
def test_a_pod_speaks_to_the_world_as_its_node(node: Packet, protocol: str) -> None:
    sent, answer = {
        "tcp": (syn(WORLD, 443, 4000, src=POD), lambda port: TCP(sport=443, dport=port, flags="SA")),
        "udp": (IP(src=POD, dst=WORLD) / UDP(sport=4000, dport=443), lambda port: UDP(sport=443, dport=port)),
        "ping": (IP(src=POD, dst=WORLD) / ICMP(type=8, id=4000), lambda port: ICMP(type=0, id=port)),
    }[protocol]
    assert node.from_pod(sent).verdict is Verdict.FORWARDED
    result = node.to_lan(sent, came_by=node.pod)
    assert (result.verdict, result.frame[IP].src) == (Verdict.MASQUERADED, c.NODE)
    transport = result.frame[IP].payload
    port = transport.id if protocol == "ping" else transport.sport
    assert 49152 <= port <= 65535
    assert bytes(node.to_lan(sent, came_by=node.pod).frame) == bytes(result.frame)  # the same port again
    back = node.from_lan(IP(src=WORLD, dst=c.NODE) / answer(port))
    assert_delivered(back)
    assert back.frame[IP].dst == POD
    assert node.to_pod(back.frame.payload).verdict is Verdict.REPLY
    transport = back.frame[IP].payload
    assert (transport.id if protocol == "ping" else transport.dport) == 4000


def test_a_reset_from_the_world_may_be_anybodys_and_is_forgotten_with_the_next_packet(node: Packet) -> None:
    """A pod's own ends the translation."""

    def life_s() -> set[int]:
        return {round((entry.deadline - c.monotonic_ns()) / 1e9) for entry in node.entries("nat_pods").values()}  # type: ignore[attr-defined]

    port = node.to_lan(syn(WORLD, 443, 4000, src=POD)).frame[TCP].sport
    node.from_lan(syn(c.NODE, port, 443, "SA", src=WORLD))
    assert life_s() == {8000}
    node.from_lan(syn(c.NODE, port, 443, "R", src=WORLD))
    assert life_s() == {60}
    node.from_lan(syn(c.NODE, port, 443, "A", src=WORLD))
    assert life_s() == {8000}
    node.to_lan(syn(WORLD, 443, 4000, "R", src=POD))
    assert life_s() == {10}


def test_an_answer_from_somebody_else_is_not_the_pods(node: Packet) -> None:
    port = node.to_lan(syn(WORLD, 443, 4000, src=POD)).frame[TCP].sport
    for packet in (syn(c.NODE, port, 443, "SA", src="203.0.113.10"), syn(c.NODE, port, 444, "SA", src=WORLD)):
        assert node.from_lan(packet).frame[IP].dst == c.NODE


def test_two_pods_with_the_same_port_get_two(node: Packet) -> None:
    ports = {node.to_lan(syn(WORLD, 443, 4000, src=pod)).frame[TCP].sport for pod in (POD, c.NEIGHBOUR)}
    assert len(ports) == 2


def test_a_port_in_use_is_not_given_twice(node: Packet) -> None:
    first = node.to_lan(syn(WORLD, 443, 4000, src=POD)).frame[TCP].sport
    key = l.Tuple(pack(POD), pack(WORLD), 4000, 443, 6)
    node.maps["nat_pods"].delete(key.pack())  # evicted; its answer's entry lives
    assert node.to_lan(syn(WORLD, 443, 4000, src=POD)).frame[TCP].sport == first  # which is this connection's
    node.maps["nat_pods"].delete(key.pack())
    answer = l.Tuple(pack(WORLD), pack(c.NODE), 443, first, 6)
    taken = node.entries("nat_pods")[answer]
    node.put("nat_pods", answer, replace(taken, address=pack(c.NEIGHBOUR)))
    assert node.to_lan(syn(WORLD, 443, 4000, src=POD)).frame[TCP].sport != first
    assert node.entries("nat_pods")[answer].address == pack(c.NEIGHBOUR)


@pytest.mark.parametrize("layer", [UDP, TCP])
def test_a_port_at_which_the_node_listens_is_no_pods(node: Packet, layer: type[UDP | TCP]) -> None:
    """Who had it could take away what a peer says to the node: to its WireGuard at 51820, for one."""
    asked = IP(src=POD, dst=WORLD) / layer(sport=4000, dport=443)
    first = node.to_lan(asked, came_by=node.pod).frame[layer].sport
    node.maps["nat_pods"].delete_batch([key for key, _ in node.maps["nat_pods"].items()])
    with node.namespace.entered():
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if layer is UDP else socket.SOCK_STREAM)
        with own:
            own.bind(("0.0.0.0", first))
            if layer is TCP:
                own.listen()
            other = node.to_lan(asked, came_by=node.pod)
    assert other.verdict is Verdict.MASQUERADED and other.frame[layer].sport not in (first, 4000)
    assert bytes(node.to_lan(asked, came_by=node.pod).frame) == bytes(other.frame)


def test_ports_towards_one_destination_run_out_into_a_drop(node: Packet) -> None:
    node.to_lan(syn(WORLD, 443, 4000, src=POD))
    (entry,) = [value for value in node.entries("nat_pods").values() if value.kind == l.NAT_SOURCE_REPLY]
    other = replace(entry, address=pack(c.NEIGHBOUR), deadline=c.monotonic_ns(600))
    everything = {l.Tuple(pack(WORLD), pack(c.NODE), 443, port, 6).pack(): other.pack() for port in range(49152, 65536)}
    node.maps["nat_pods"].put_batch(everything)
    assert node.to_lan(syn(WORLD, 443, 4001, src=POD)).verdict is Verdict.NO_PORT
    assert node.to_lan(syn(WORLD, 444, 4001, src=POD)).verdict is Verdict.MASQUERADED


def test_an_answer_to_a_client_that_reached_the_pod_itself_keeps_the_pods_address(node: Packet) -> None:
    node.to_pod(syn(POD, 80))
    assert node.to_lan(IP(src=POD, dst=CLIENT) / TCP(sport=80, dport=5000, flags="SA")).verdict is Verdict.FORWARDED


def test_an_error_about_a_masqueraded_packet_finds_the_pod(node: Packet) -> None:
    node.from_pod(syn(WORLD, 443, 4000, src=POD))
    sent = node.to_lan(syn(WORLD, 443, 4000, src=POD)).frame[IP]
    error = IP(src="192.168.86.1", dst=c.NODE) / ICMP(type=3, code=4, nexthopmtu=1400) / sent
    result = node.from_lan(error)
    assert_delivered(result)
    assert (result.frame[IP].dst, result.frame["IP in ICMP"].src) == (POD, POD)
    assert result.frame["TCP in ICMP"].sport == 4000
    assert node.to_pod(result.frame.payload).verdict is Verdict.REPLY


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (IP(src=POD, dst=WORLD, flags="MF") / UDP() / Raw(b"x" * 32), Verdict.FRAGMENT),
        (IP(src=POD, dst=WORLD, proto=47) / Raw(b"x" * 32), Verdict.UNSUPPORTED),
        (IP(src=POD, dst=WORLD, proto=132) / Raw(b"x" * 32), Verdict.UNSUPPORTED),  # SCTP: no helper for its CRC
        (IP(src=POD, dst=WORLD) / ICMP(type=0, id=7), Verdict.DEFAULT_DENY),
        (IP(src=POD, dst=WORLD) / ICMP(type=3) / (IP(src=WORLD, dst=POD) / UDP()), Verdict.DEFAULT_DENY),
    ],
    ids=str,
)
def test_what_cannot_be_masqueraded_does_not_leave_with_the_pods_address(
    node: Packet, packet: IP, verdict: Verdict
) -> None:
    assert node.to_lan(packet).verdict is verdict


# IPv6: the same path


def test_an_ipv6_service_and_its_answer(node: Packet) -> None:
    node.service("fd00:18::1", 80, [("fd00:1::3", 8080, "fd00::21")], scope=l.SCOPE_WORLD)
    result = node.from_lan(IPv6(src="fd00:9::1", dst="fd00:18::1") / TCP(sport=5000, dport=80, flags="S"))
    assert_delivered(result)
    assert (result.frame[IPv6].dst, result.frame[TCP].dport) == ("fd00:1::3", 8080)
    leaves = node.to_lan(IPv6(src="fd00:1::3", dst="fd00:9::1") / TCP(sport=8080, dport=5000, flags="SA"))
    assert (leaves.frame[IPv6].src, leaves.frame[TCP].sport) == ("fd00:18::1", 80)
    assert node.from_lan(IPv6(src="fd00:9::1", dst="fd00:18::1") / TCP(dport=81)).verdict is Verdict.NO_SERVICE


def test_an_ipv6_backend_elsewhere(node: Packet) -> None:
    node.service("fd00:18::1", 80, [("fd00:2::3", 8080, "fd00::22")], scope=l.SCOPE_WORLD)
    result = node.from_lan(IPv6(src="fd00:9::1", dst="fd00:18::1", hlim=9) / TCP(sport=5000, dport=80, flags="S"))
    assert (result.action, result.frame[IPv6].hlim, result.frame[IPv6].dst) == (REDIRECT, 8, "fd00:18::1")


@pytest.mark.parametrize(
    ("sent", "quoted"),
    [(UDP(sport=4000, dport=53), UDP), (ICMPv6EchoRequest(id=4000), ICMPv6EchoRequest), (TCP(sport=4000), TCP)],
    ids=["udp", "ping", "tcp"],
)
def test_ipv6_masquerade_and_errors(node: Packet, sent: Frame, quoted: type[Frame]) -> None:
    packet = IPv6(src="fd00:1::3", dst="fd00:9::1") / sent / Raw(b"x" * 12)
    assert node.from_pod(packet).verdict is Verdict.FORWARDED
    result = node.to_lan(packet, came_by=node.pod)
    assert (result.verdict, result.frame[IPv6].src) == (Verdict.MASQUERADED, "fd00::21")
    error = IPv6(src="fd00:7::7", dst="fd00::21") / ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(result.frame[IPv6]))
    back = node.from_lan(error)
    assert_delivered(back)
    assert back.frame[IPv6].dst == "fd00:1::3"
    assert node.to_pod(back.frame.payload).verdict is Verdict.REPLY
    inner = IPv6(bytes(back.frame)[14 + 40 + 8 :])
    assert inner.src == "fd00:1::3"
    assert (inner[quoted].id if quoted is ICMPv6EchoRequest else inner[quoted].sport) == sent.fields.get(
        "sport", sent.fields.get("id")
    )
