"""Policies for the node itself: what comes and goes by the uplink, and what its own pods send it."""

from __future__ import annotations

from functools import reduce
from operator import truediv

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet as Frame
from scapy.packet import Raw

from bpf import packet as c
from bpf.packet import CLIENT, NODE, POD, VIP, Packet
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l

pytestmark = pytest.mark.root
WORLD, ELSEWHERE, SECOND = "203.0.113.9", "192.168.86.60", "192.168.86.121"
IN, OUT = l.ENFORCE_INGRESS, l.ENFORCE_EGRESS
ALLOW, DENY = l.ACTION_ALLOW, l.ACTION_DENY


def tcp(src: str, dst: str, dport: int, flags: str = "S", sport: int = 5000) -> IP:
    return IP(src=src, dst=dst) / TCP(sport=sport, dport=dport, flags=flags)


def back(packet: IP, flags: str = "SA") -> IP:
    return IP(src=packet.dst, dst=packet.src) / TCP(sport=packet.dport, dport=packet.sport, flags=flags)


def let_in(node: Packet, peer: int, port: int | None = 80, protocol: int | None = 6, action: int = ALLOW) -> None:
    node.rule(action, peer, port, endpoint=l.HOST_ENDPOINT, direction=l.DIRECTION_INGRESS, protocol=protocol)


def let_out(node: Packet, peer: int, port: int | None = 443, protocol: int | None = 6) -> None:
    node.rule(ALLOW, peer, port, endpoint=l.HOST_ENDPOINT, direction=l.DIRECTION_EGRESS, protocol=protocol)


def by_node(packet: Frame) -> Frame:
    """From the other node, by its own network card."""
    return Ether(src=c.OTHER_NODE_MAC, dst=c.NODE_MAC) / packet


def passes(result: object) -> bool:
    assert isinstance(result, c.Result)
    return not result.verdict.dropped


# no rule


FOR_THE_NODE = [
    tcp(CLIENT, NODE, 80),
    tcp(WORLD, NODE, 80, "A"),
    tcp(CLIENT, SECOND, 80),
    IP(src=CLIENT, dst=NODE) / UDP(sport=9, dport=9),
    IP(src=CLIENT, dst=NODE) / ICMP(),
    IP(src=CLIENT, dst=NODE, frag=9) / Raw(b"x" * 16),
    IP(src=CLIENT, dst=NODE, flags="MF") / UDP(sport=9, dport=9) / Raw(b"x" * 16),
    IP(src=CLIENT, dst=NODE, proto=99) / Raw(b"x" * 16),
    by_node(IP(src=c.REMOTE, dst=NODE) / TCP(dport=80)),
    by_node(IP(src=c.OTHER_NODE, dst=NODE) / TCP(dport=80)),
    IPv6(src="fd00:9::1", dst="fd00::21") / TCP(dport=80),
    IPv6(src="fd00:9::1", dst="fd00::21") / ICMPv6EchoRequest(),
]


@pytest.mark.parametrize("packet", FOR_THE_NODE, ids=Frame.summary)
def test_a_node_that_nothing_selects_is_open_and_one_that_allows_nothing_is_shut(node: Packet, packet: Frame) -> None:
    assert node.from_lan(packet).verdict is Verdict.FORWARDED
    node.guard(OUT)
    assert node.from_lan(packet).verdict is Verdict.FORWARDED
    node.guard(IN | OUT)
    node.set_generation(2, host=True)
    assert node.from_lan(packet).verdict is Verdict.DEFAULT_DENY


def test_a_link_local_address_is_the_nodes_too(node: Packet) -> None:
    own = node.namespace.ip("-6", "-o", "addr", "show", "dev", "uplink", "scope", "link").split()[3].split("/")[0]
    packet = IPv6(src="fe80::99", dst=own) / TCP(dport=22)
    assert passes(node.from_lan(packet))
    node.guard(IN)
    assert node.from_lan(packet).verdict is Verdict.DEFAULT_DENY


NOT_FOR_THE_NODE = [
    tcp(CLIENT, ELSEWHERE, 80),
    by_node(IP(src=c.REMOTE, dst=POD) / TCP()),
    IP(src=CLIENT, dst="224.0.0.251") / UDP(sport=5353, dport=5353),
    IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67),
    Ether(src=c.CLIENT_MAC, dst=c.NODE_MAC) / ARP(op=1, psrc=CLIENT, pdst=NODE),
    IPv6(src="fe80::99", dst="fd00::21") / ICMPv6ND_NS(tgt="fd00::21"),
    IPv6(src="fe80::99", dst="ff02::1") / ICMPv6EchoRequest(),
]


@pytest.mark.parametrize("packet", NOT_FOR_THE_NODE, ids=Frame.summary)
def test_what_is_not_the_nodes_is_not_judged(node: Packet, packet: Frame) -> None:
    node.guard(IN | OUT)
    result = node.from_lan(packet)
    assert result.verdict is Verdict.FORWARDED


def test_what_the_node_sends_is_judged_and_what_it_routes_is_not(node: Packet) -> None:
    node.guard(IN | OUT)
    assert node.to_lan(tcp(NODE, WORLD, 443)).verdict is Verdict.DEFAULT_DENY
    assert node.to_lan(tcp(NODE, c.REMOTE, 443)).verdict is Verdict.DEFAULT_DENY
    assert passes(node.to_lan(tcp(ELSEWHERE, WORLD, 443), came_by=node.pod))
    assert passes(node.to_lan(tcp(POD, c.REMOTE, 443), came_by=node.pod))
    assert passes(node.to_lan(IP(src=NODE, dst="224.0.0.22", proto=2) / Raw(b"x" * 8)))
    assert passes(node.to_lan(IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)))
    assert passes(node.to_lan(IPv6(src="fd00::21", dst="fd00::22") / ICMPv6ND_NS(tgt="fd00::22")))


def test_the_broadcast_of_a_network_is_judged_as_the_lans_when_sent_and_as_the_nodes_when_heard(node: Packet) -> None:
    """To the agent it is an address of this node, so that it is that for pods."""
    node.identity("192.168.86.255/32", l.IDENTITY_HOST, NODE)
    lan = (2 << 30) + 5
    node.identity("192.168.86.0/24", lan)
    sent, heard = (IP(src=src, dst="192.168.86.255") / UDP(sport=9, dport=9) for src in (NODE, CLIENT))
    node.guard(IN | OUT)
    let_out(node, l.IDENTITY_HOST, None, None)
    assert node.to_lan(sent).verdict is node.from_lan(heard).verdict is Verdict.DEFAULT_DENY
    let_out(node, lan, 9, 17)
    let_in(node, lan, 9, 17)
    assert passes(node.to_lan(sent)) and passes(node.from_lan(heard))


def test_who_claims_to_be_a_node_must_be_it(node: Packet) -> None:
    node.identity("192.168.86.23/32", l.IDENTITY_REMOTE_NODE, "192.168.86.23")
    packet = tcp("192.168.86.23", NODE, 80)
    assert passes(node.from_lan(packet)), "that nobody has heard of"
    node.guard(IN)
    let_in(node, l.IDENTITY_REMOTE_NODE)
    assert node.from_lan(packet).verdict is Verdict.NO_NEIGHBOUR
    assert node.from_lan(tcp(c.OTHER_NODE, NODE, 80)).verdict is Verdict.SPOOFED
    assert passes(node.from_lan(by_node(tcp(c.OTHER_NODE, NODE, 80))))


# rules


def test_a_rule_opens_its_port_to_its_peer_and_answers_pass(node: Packet) -> None:
    node.guard(IN | OUT)
    let_in(node, l.IDENTITY_WORLD)
    packet = tcp(CLIENT, NODE, 80)
    assert not passes(node.to_lan(back(packet)))
    assert node.from_lan(packet).verdict is Verdict.FORWARDED
    assert passes(node.to_lan(back(packet)))
    assert not passes(node.from_lan(tcp(CLIENT, NODE, 81)))
    assert not passes(node.from_lan(by_node(tcp(c.OTHER_NODE, NODE, 80))))
    assert not passes(node.to_lan(tcp(NODE, CLIENT, 80)))


def test_a_deny_outweighs(node: Packet) -> None:
    node.guard(IN)
    let_in(node, l.IDENTITY_ANY, None, None)
    let_in(node, l.IDENTITY_WORLD, 80, action=DENY)
    assert node.from_lan(tcp(CLIENT, NODE, 80)).verdict is Verdict.POLICY_DENIED
    assert passes(node.from_lan(tcp(CLIENT, NODE, 81)))


def test_remote_pods_are_judged_by_who_they_are(node: Packet) -> None:
    node.guard(IN)
    let_in(node, c.REMOTE_IDENTITY)
    assert passes(node.from_lan(by_node(tcp(c.REMOTE, NODE, 80))))
    assert not passes(node.from_lan(by_node(tcp("10.244.2.9", NODE, 80))))
    assert node.from_lan(tcp(POD, NODE, 80)).verdict is Verdict.SPOOFED


@pytest.mark.parametrize("enforce", [IN, IN | OUT])
def test_answers_to_the_nodes_own_questions_pass(node: Packet, enforce: int) -> None:
    node.guard(enforce)
    let_out(node, l.IDENTITY_WORLD, 53, 17)
    question = IP(src=NODE, dst="9.9.9.9") / UDP(sport=4000, dport=53) / Raw(b"?")
    answer = IP(src="9.9.9.9", dst=NODE) / UDP(sport=53, dport=4000) / Raw(b"!")
    assert not passes(node.from_lan(answer))
    assert passes(node.to_lan(question))
    assert passes(node.from_lan(answer))
    assert not passes(node.from_lan(IP(src="9.9.9.8", dst=NODE) / UDP(sport=53, dport=4000)))


@pytest.mark.parametrize("enforce", [IN, IN | OUT])
def test_a_router_may_say_that_a_packet_was_too_big(node: Packet, enforce: int) -> None:
    node.guard(enforce)
    let_out(node, l.IDENTITY_WORLD)
    sent = tcp(NODE, WORLD, 443)
    too_big = IP(src="192.168.86.1", dst=NODE) / ICMP(type=3, code=4) / sent
    assert not passes(node.from_lan(too_big))
    assert passes(node.to_lan(sent))
    assert passes(node.from_lan(too_big))
    assert not passes(node.from_lan(IP(src="192.168.86.1", dst=NODE) / ICMP(type=3, code=4) / tcp(NODE, WORLD, 22)))


def test_the_node_says_what_became_of_packets_that_it_routes(node: Packet) -> None:
    """They have no flow of the node's: a pod that is gone, a packet that is too large."""
    asked = tcp(c.REMOTE, "10.244.1.99", 80)
    gone = IP(src=NODE, dst=c.REMOTE) / ICMP(type=3, code=1) / asked
    too_large = IP(src=NODE, dst=c.REMOTE) / ICMP(type=3, code=4, nexthopmtu=1400) / asked
    node.guard(IN)
    assert passes(node.to_lan(gone)) and passes(node.to_lan(too_large))
    node.guard(IN | OUT)
    assert node.to_lan(gone).verdict is Verdict.DEFAULT_DENY
    let_out(node, c.REMOTE_IDENTITY, 11, 1)
    assert node.to_lan(gone).verdict is Verdict.DEFAULT_DENY
    let_out(node, c.REMOTE_IDENTITY, 3, 1)
    assert passes(node.to_lan(gone)) and passes(node.to_lan(too_large))


def test_what_the_node_says_of_a_services_packet_names_the_service(node: Packet) -> None:
    """Once it is translated, the kernel finds it too large for its way."""
    node.service(VIP, 80, [(POD, 8080, NODE)], scope=l.SCOPE_WORLD)
    node.guard(IN)
    came = node.from_lan(tcp(CLIENT, VIP, 80)).frame[IP]
    said = node.to_lan(IP(src=NODE, dst=CLIENT) / ICMP(type=3, code=4, nexthopmtu=1400) / came)
    assert said.verdict is Verdict.TRANSLATED and said.frame["IP in ICMP"].dst == VIP


def test_a_connection_older_than_the_policy_goes_on_if_it_may_begin(node: Packet) -> None:
    """Whichever side sends next."""
    node.guard(IN | OUT)
    let_in(node, l.IDENTITY_ANY, 22)
    let_out(node, l.IDENTITY_ANY, 6443)
    assert passes(node.to_lan(tcp(NODE, CLIENT, 5000, "PA", sport=22)))
    assert passes(node.from_lan(by_node(tcp(c.OTHER_NODE, NODE, 5000, "PA", sport=6443))))
    assert not passes(node.to_lan(tcp(NODE, CLIENT, 5000, "PA", sport=23)))
    assert not passes(node.from_lan(by_node(tcp(c.OTHER_NODE, NODE, 5000, "S", sport=6443))))
    assert not passes(node.to_lan(tcp(NODE, WORLD, 5000, "S", sport=22)))


def test_a_rule_that_goes_ends_its_connections(node: Packet) -> None:
    node.guard(IN)
    let_in(node, l.IDENTITY_WORLD)
    assert passes(node.from_lan(tcp(CLIENT, NODE, 80)))
    key = l.PolicyKey(l.POLICY_BITS_PORT, l.HOST_ENDPOINT, l.IDENTITY_WORLD, l.DIRECTION_INGRESS, 6, 80)
    node.maps["policy"].delete(key.pack())
    assert passes(node.from_lan(tcp(CLIENT, NODE, 80, "A")))
    node.set_generation(2, host=True)
    assert not passes(node.from_lan(tcp(CLIENT, NODE, 80, "A")))


def test_a_fragment_passes_by_a_rule_that_names_no_port(node: Packet) -> None:
    node.guard(IN)
    fragment = IP(src=CLIENT, dst=NODE, frag=9, proto=17) / Raw(b"x" * 16)
    let_in(node, l.IDENTITY_WORLD, 53, 17)
    assert not passes(node.from_lan(fragment))
    let_in(node, l.IDENTITY_WORLD, None, 17)
    assert passes(node.from_lan(fragment))


HERE, THERE = {"src": CLIENT, "dst": NODE}, {"src": "fd00:9::1", "dst": "fd00::21"}
DRESSED = [
    IP(**HERE, options=b"\x01\x01\x01\x01"),
    IP(**HERE, flags="MF"),
    IP(**HERE, flags="MF", options=b"\x07\x07\x04" + bytes(5)),
    IPv6(**THERE) / IPv6ExtHdrHopByHop(),
    IPv6(**THERE) / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
    IPv6(**THERE) / IPv6ExtHdrFragment(m=1),
    IPv6(**THERE) / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(segleft=0) / IPv6ExtHdrFragment() / IPv6ExtHdrDestOpt(),
]


@pytest.mark.parametrize("dress", DRESSED, ids=Frame.summary)
def test_options_extension_headers_and_fragmentation_hide_no_port(node: Packet, dress: Frame) -> None:
    """The node's kernel reads what is behind them."""
    node.guard(IN)
    let_in(node, l.IDENTITY_ANY, None, None)
    let_in(node, l.IDENTITY_WORLD, 80, action=DENY)
    let_in(node, l.IDENTITY_WORLD, 80, 17, action=DENY)
    for denied in (TCP(sport=5000, dport=80, flags="S"), UDP(sport=5000, dport=80) / Raw(b"x" * 16)):
        assert node.from_lan(dress / denied).verdict is Verdict.POLICY_DENIED
    assert passes(node.from_lan(dress / TCP(sport=5000, dport=81, flags="S")))


@pytest.mark.parametrize("dress", DRESSED, ids=Frame.summary)
def test_a_rule_for_a_port_opens_it_whatever_is_before_it(node: Packet, dress: Frame) -> None:
    node.guard(IN)
    let_in(node, l.IDENTITY_WORLD)
    assert passes(node.from_lan(dress / TCP(sport=5000, dport=80, flags="S")))
    assert node.from_lan(dress / TCP(sport=5000, dport=81, flags="S")).verdict is Verdict.DEFAULT_DENY


@pytest.mark.parametrize("dress", DRESSED, ids=Frame.summary)
def test_a_connection_does_not_begin_in_options_on_what_seemed_to_be_in_its_middle(node: Packet, dress: Frame) -> None:
    node.guard(IN)
    let_in(node, l.IDENTITY_WORLD, 80, action=DENY)
    network = dress.__class__(src=dress.src, dst=dress.dst)
    assert passes(node.from_lan(network / TCP(sport=5000, dport=80, flags="A"))), "older than the policy, it seems"
    assert not passes(node.from_lan(dress / TCP(sport=5000, dport=80, flags="S")))


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (IP(**HERE, flags="MF", proto=6) / Raw(bytes(TCP(dport=80))[:8]), Verdict.MALFORMED),
        (IPv6(**THERE) / IPv6ExtHdrFragment(m=1, nh=6) / Raw(bytes(TCP(dport=80))[:8]), Verdict.MALFORMED),
        (IPv6(**THERE, nh=60, plen=12) / Raw(bytes([6, 200]) + bytes(10)), Verdict.MALFORMED),
        (reduce(truediv, [IPv6(**THERE), *[IPv6ExtHdrDestOpt()] * 7, TCP(dport=80)]), Verdict.UNSUPPORTED),
    ],
    ids=["tiny", "tiny, IPv6", "longer than the packet", "too many"],
)
def test_what_may_hide_a_port_all_the_same_does_not_pass(node: Packet, packet: Frame, verdict: Verdict) -> None:
    node.guard(IN)
    let_in(node, l.IDENTITY_ANY, None, None)
    assert node.from_lan(packet).verdict is verdict


def test_a_service_with_a_backend_in_the_nodes_network_is_judged_as_that(node: Packet) -> None:
    node.service(VIP, 80, [(NODE, 8080, NODE)], scope=l.SCOPE_WORLD)
    node.guard(IN | OUT)
    packet = tcp(CLIENT, VIP, 80)
    assert node.from_lan(packet).verdict is Verdict.DEFAULT_DENY
    let_in(node, l.IDENTITY_WORLD, 8080)
    assert node.from_lan(packet).verdict is Verdict.TRANSLATED
    answer = node.to_lan(tcp(NODE, CLIENT, 5000, "SA", sport=8080))
    assert answer.verdict is Verdict.TRANSLATED and answer.frame[IP].src == VIP


def test_a_service_of_pods_is_not_the_nodes(node: Packet) -> None:
    node.service(VIP, 80, [(POD, 8080, NODE)], scope=l.SCOPE_WORLD)
    node.guard(IN | OUT)
    assert node.from_lan(tcp(CLIENT, VIP, 80)).verdict is Verdict.TRANSLATED


# its own pods


@pytest.mark.parametrize("address", [NODE, SECOND])
def test_its_own_pods_are_judged_by_who_they_are(node: Packet, address: str) -> None:
    assert passes(node.from_pod(tcp(POD, address, 8080)))
    node.guard(IN)
    result = node.from_pod(tcp(POD, address, 8080, sport=5001))
    assert result.verdict is Verdict.DEFAULT_DENY
    let_in(node, c.POD_IDENTITY, 8080)
    assert passes(node.from_pod(tcp(POD, address, 8080, sport=5002)))
    assert not passes(node.from_pod(tcp(POD, address, 8081)))


def test_what_its_pods_send_elsewhere_is_not_the_nodes(node: Packet) -> None:
    node.guard(IN | OUT)
    for address in (ELSEWHERE, c.REMOTE, c.NEIGHBOUR, c.OTHER_NODE):
        assert passes(node.from_pod(tcp(POD, address, 80))), address


def test_the_node_reaches_its_own_pods_and_hears_their_answers(node: Packet) -> None:
    node.guard(IN | OUT)
    packet = tcp(NODE, POD, 8080)
    assert passes(node.to_pod(packet, came_by=0))
    assert passes(node.from_pod(back(packet)))
    assert not passes(node.from_pod(tcp(POD, NODE, 5000, sport=8081)))
