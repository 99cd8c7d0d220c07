"""What a pod may send: the door, then services, then policy."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from bpf import packet as c
from bpf.packet import POD, REDIRECT, Packet
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l

pytestmark = pytest.mark.root
WORLD = "203.0.113.9"
POD_LINK_LOCAL, NODE_LINK_LOCAL = "fe80::ff:fe00:103", "fe80::ff:fe00:1fe"  # of POD_MAC, HOST_MAC


def syn(to: str = WORLD, port: int = 443, sport: int = 4000, src: str = POD) -> IP:
    return IP(src=src, dst=to) / TCP(sport=sport, dport=port, flags="S")


# the door


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        (syn(src="10.244.1.9"), Verdict.SPOOFED),  # nobody's address
        (syn(src=c.NEIGHBOUR), Verdict.SPOOFED),  # another pod's
        (syn(src=c.NODE), Verdict.SPOOFED),
        (IPv6(src="fd00:1::4", dst="fd00:9::1") / TCP(), Verdict.SPOOFED),
        (IPv6(src="::ffff:10.244.1.3", dst="fd00:9::1") / TCP(), Verdict.MALFORMED),  # IPv4 in IPv6's clothes
        (IPv6(src="fd00:1::3", dst="::ffff:10.0.0.1") / TCP(), Verdict.MALFORMED),
        (IP(src=POD, dst="224.0.0.251") / UDP(dport=5353), Verdict.UNSUPPORTED),
        (IP(src=POD, dst="255.255.255.255") / UDP(dport=67), Verdict.UNSUPPORTED),
        (IP(src=POD, dst="127.0.0.1") / TCP(dport=10257), Verdict.UNSUPPORTED),  # the node, with route_localnet
        (IP(src=POD, dst=WORLD, options=b"\x94\x04\x00\x00") / TCP(), Verdict.UNSUPPORTED),
        (IP(src=POD, dst=WORLD, flags="MF") / UDP() / Raw(b"x" * 32), Verdict.FRAGMENT),
        (IP(src=POD, dst=WORLD, frag=4) / UDP() / Raw(b"x" * 32), Verdict.FRAGMENT),
        (IPv6(src="fd00:1::3", dst="fd00:9::1") / IPv6ExtHdrFragment(m=1) / UDP(), Verdict.FRAGMENT),
        (IPv6(src="fd00:1::3", dst="fd00:9::1") / IPv6ExtHdrHopByHop() / UDP(), Verdict.UNSUPPORTED),
        (IPv6(src="fd00:1::3", dst="fd00:9::1") / IPv6ExtHdrDestOpt() / UDP(), Verdict.UNSUPPORTED),
        (
            IPv6(src="fd00:1::3", dst="fd00:9::1") / IPv6ExtHdrRouting(addresses=["fd00:1::4"]) / UDP(),
            Verdict.UNSUPPORTED,
        ),
        (IPv6(src="fd00:1::3", dst=NODE_LINK_LOCAL) / TCP(dport=22), Verdict.UNSUPPORTED),
        (IPv6(src="fd00:1::3", dst="ff02::1") / UDP(dport=5353), Verdict.UNSUPPORTED),
        (IPv6(src="fd00:1::3", dst="ff02::2") / UDP(dport=5353), Verdict.UNSUPPORTED),
        (IPv6(src=POD_LINK_LOCAL, dst=NODE_LINK_LOCAL) / TCP(dport=22), Verdict.SPOOFED),
        (IPv6(src=POD_LINK_LOCAL, dst="ff02::2", hlim=255) / ICMPv6ND_RS(), Verdict.SPOOFED),
        (IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt="fd00:1::3"), Verdict.SPOOFED),
        (IP(src=POD, dst=WORLD, proto=47) / Raw(b"x" * 32), Verdict.UNSUPPORTED),  # GRE
        (IP(src=POD, dst=WORLD, len=24) / TCP(), Verdict.MALFORMED),  # half a TCP header
        (IP(src=POD, dst=WORLD, len=19) / TCP(), Verdict.MALFORMED),
        (IP(src=POD, dst=WORLD, version=5) / TCP(), Verdict.MALFORMED),
        (IP(src=POD, dst=WORLD) / ICMP(type=13) / Raw(b"x" * 12), Verdict.UNSUPPORTED),
        (IP(src=POD, dst=WORLD) / ICMP(type=0, id=5), Verdict.DEFAULT_DENY),  # an answer that nobody asked for
    ],
    ids=str,
)
def test_what_no_pod_may_send(node: Packet, frame: IP, verdict: Verdict) -> None:
    assert node.from_pod(frame).verdict is verdict
    assert not node.flows() and not node.entries("nat_pods")


def test_without_an_agent_nothing_leaves(node: Packet) -> None:
    node.maps["endpoints"].delete(pack(POD))
    assert node.from_pod(syn()).verdict is Verdict.SPOOFED


def test_an_address_counts_on_its_own_device_only(node: Packet) -> None:
    assert node.from_pod(syn(), device=node.neighbour).verdict is Verdict.SPOOFED


@pytest.mark.parametrize(
    ("source", "destination", "verdict"),
    [
        ("02:00:00:00:99:99", c.HOST_MAC, Verdict.SPOOFED),
        (c.POD_MAC, "ff:ff:ff:ff:ff:ff", Verdict.UNSUPPORTED),
        (c.POD_MAC, "02:00:00:00:99:99", Verdict.UNSUPPORTED),
    ],
)
def test_a_frame_goes_from_the_pod_to_its_gateway(
    node: Packet, source: str, destination: str, verdict: Verdict
) -> None:
    frame = Ether(src=source, dst=destination) / syn()
    assert node.run("pod_ingress", frame, device=node.pod).verdict is verdict


@pytest.mark.parametrize("ethertype", [0x88B5, 0x8863, 0x86DD + 1])
def test_other_ethertypes_are_dropped(node: Packet, ethertype: int) -> None:
    frame = Ether(src=c.POD_MAC, dst=c.HOST_MAC, type=ethertype) / Raw(b"x" * 60)
    assert node.run("pod_ingress", frame, device=node.pod).verdict is Verdict.UNSUPPORTED


def test_a_vlan_tag_is_dropped(node: Packet) -> None:
    frame = Ether(src=c.POD_MAC, dst=c.HOST_MAC) / Dot1Q(vlan=7) / syn()
    assert node.run("pod_ingress", frame, device=node.pod).verdict is Verdict.UNSUPPORTED


# ARP


def arp(target: str, sender: str = POD, op: int = 1, source: str = c.POD_MAC) -> Ether:
    return Ether(src=source, dst="ff:ff:ff:ff:ff:ff") / ARP(op=op, hwsrc=source, psrc=sender, pdst=target)


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        (arp(c.GATEWAY, sender=c.NEIGHBOUR), Verdict.SPOOFED),
        (arp(c.GATEWAY, sender="0.0.0.0"), Verdict.SPOOFED),
        (arp(c.GATEWAY, source="02:00:00:00:99:99"), Verdict.SPOOFED),
        (arp(c.NODE), Verdict.UNSUPPORTED),
        (arp(POD), Verdict.UNSUPPORTED),  # announces itself
        (arp(c.GATEWAY, op=2), Verdict.UNSUPPORTED),
        (Ether(src=c.POD_MAC) / ARP(hwlen=8, psrc=POD, pdst=c.GATEWAY), Verdict.MALFORMED),
    ],
)
def test_a_pod_learns_and_teaches_no_neighbour(node: Packet, frame: Ether, verdict: Verdict) -> None:
    assert node.run("pod_ingress", frame, device=node.pod).verdict is verdict


def test_the_gateway_is_answered_on_the_spot(node: Packet) -> None:
    result = node.run("pod_ingress", arp(c.GATEWAY), device=node.pod)
    assert (result.verdict, result.action) == (Verdict.ARP_ANSWERED, REDIRECT)
    expected = Ether(src=c.HOST_MAC, dst=c.POD_MAC) / ARP(
        op=2, hwsrc=c.HOST_MAC, psrc=c.GATEWAY, hwdst=c.POD_MAC, pdst=POD
    )
    assert bytes(result.frame) == bytes(expected)


# policy


def enforce(node: Packet, direction: int = l.ENFORCE_EGRESS) -> None:
    node.endpoint(POD, c.POD_ID, c.POD_IDENTITY, enforce=direction)


def test_a_pod_that_no_policy_selects_may_connect_and_is_tracked(node: Packet) -> None:
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED
    ((key, flow),) = node.flows().items()
    assert key == l.FlowKey(c.POD_ID, pack(WORLD), 443, 4000, 6)
    assert (flow.direction, flow.generation, flow.rule) == (l.DIRECTION_EGRESS, 1, 0)
    assert 59e9 < flow.deadline - c.monotonic_ns() <= 60e9


def test_default_deny(node: Packet) -> None:
    enforce(node)
    assert node.from_pod(syn()).verdict is Verdict.DEFAULT_DENY
    assert not node.flows()


def test_ingress_enforcement_says_nothing_about_egress(node: Packet) -> None:
    enforce(node, l.ENFORCE_INGRESS)
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED


@pytest.mark.parametrize(
    ("peer", "port", "protocol"),
    [
        (l.IDENTITY_WORLD, 443, 6),
        (l.IDENTITY_WORLD, None, 6),
        (l.IDENTITY_WORLD, None, None),
        (l.IDENTITY_ANY, 443, 6),
        (l.IDENTITY_ANY, None, None),
    ],
)
def test_a_rule_allows(node: Packet, peer: int, port: int | None, protocol: int | None) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, peer, port, protocol=protocol)
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED
    ((_, flow),) = node.flows().items()
    assert flow.rule == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"peer": c.REMOTE_IDENTITY},
        {"port": 80},
        {"protocol": 17},
        {"endpoint": c.NEIGHBOUR_ID},
        {"direction": l.DIRECTION_INGRESS},
    ],
)
def test_a_rule_for_something_else_allows_nothing(node: Packet, wrong: dict[str, int]) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, **{"peer": l.IDENTITY_WORLD, "port": 443, **wrong})
    assert node.from_pod(syn()).verdict is Verdict.DEFAULT_DENY


def test_deny_wins_over_allow_whichever_is_more_exact(node: Packet) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 443)
    node.rule(l.ACTION_DENY, l.IDENTITY_ANY, None, protocol=None)
    assert node.from_pod(syn()).verdict is Verdict.POLICY_DENIED


def test_deny_needs_no_enforcement(node: Packet) -> None:
    node.rule(l.ACTION_DENY, l.IDENTITY_WORLD, 443)
    assert node.from_pod(syn()).verdict is Verdict.POLICY_DENIED
    assert node.from_pod(syn(port=444)).verdict is Verdict.FORWARDED


def test_the_gateway_is_a_next_hop_and_nobody_to_talk_to(node: Packet) -> None:
    """No node has its address: by the node's routes it would go to the LAN."""
    for packet in (syn(c.GATEWAY), IP(src=POD, dst=c.GATEWAY) / ICMP(type=8, id=77, seq=1)):
        assert node.from_pod(packet).verdict is Verdict.UNSUPPORTED
    enforce(node)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, None, protocol=None)
    assert node.from_pod(syn(c.NODE)).verdict is Verdict.DEFAULT_DENY
    node.rule(l.ACTION_ALLOW, l.IDENTITY_HOST, None)
    assert node.from_pod(syn(c.NODE)).verdict is Verdict.FORWARDED


def test_an_echo_request_is_judged_by_its_type(node: Packet) -> None:
    enforce(node)
    echo = IP(src=POD, dst=WORLD) / ICMP(type=8, id=77, seq=1)
    assert node.from_pod(echo).verdict is Verdict.DEFAULT_DENY
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 8, protocol=1)
    assert node.from_pod(echo).verdict is Verdict.FORWARDED
    assert node.to_pod(IP(src=WORLD, dst=POD) / ICMP(type=0, id=77, seq=1)).verdict is Verdict.REPLY


def test_an_echo_request_is_no_answer_though_both_have_number_zero(node: Packet) -> None:
    """The one number with which the flow of a request is also that of one the other way."""
    reply = IP(src=WORLD, dst=POD) / ICMP(type="echo-reply", id=0)
    request = IP(src=WORLD, dst=POD) / ICMP(id=0)
    node.endpoint(POD, c.POD_ID, c.POD_IDENTITY, enforce=l.ENFORCE_INGRESS)
    assert node.from_pod(IP(src=POD, dst=WORLD) / ICMP(id=0)).verdict is Verdict.FORWARDED
    assert node.to_pod(request).verdict is Verdict.DEFAULT_DENY
    assert node.to_pod(reply).verdict is Verdict.REPLY
    enforce(node)
    other = "203.0.113.10"
    assert node.to_pod(IP(src=other, dst=POD) / ICMP(id=0)).verdict is Verdict.FORWARDED
    assert node.from_pod(IP(src=POD, dst=other) / ICMP(id=0)).verdict is Verdict.DEFAULT_DENY
    assert node.from_pod(IP(src=POD, dst=other) / ICMP(type="echo-reply", id=0)).verdict is Verdict.REPLY


def test_ipv6_takes_the_same_path(node: Packet) -> None:
    node.endpoint("fd00:1::3", c.POD_ID, c.POD_IDENTITY, enforce=l.ENFORCE_EGRESS)
    echo = IPv6(src="fd00:1::3", dst="fd00:9::1") / ICMPv6EchoRequest(id=9)
    connect = IPv6(src="fd00:1::3", dst="fd00:9::1") / TCP(sport=4000, dport=443, flags="S")
    assert node.from_pod(connect).verdict is Verdict.DEFAULT_DENY
    assert node.from_pod(echo).verdict is Verdict.DEFAULT_DENY
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 443)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 128, protocol=58)
    assert node.from_pod(connect).verdict is Verdict.FORWARDED
    assert node.from_pod(echo).verdict is Verdict.FORWARDED


# names


def learn(node: Packet, address: str, selectors: dict[int, int], endpoint: int = c.POD_ID) -> None:
    node.put("fqdn", l.FqdnKey(endpoint, pack(address)), l.Fqdn.unpack(l.Fqdn.packed(selectors)))


SELECTOR = 0x80000001


def soon() -> int:
    return c.monotonic_ns() // 10**9 + 60


def test_a_learned_name_opens_its_address_for_that_pod_and_rule_only(node: Packet) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, SELECTOR, 443)
    assert node.from_pod(syn()).verdict is Verdict.DEFAULT_DENY
    learn(node, WORLD, {SELECTOR: soon()}, endpoint=c.NEIGHBOUR_ID)
    learn(node, WORLD, {SELECTOR + 1: soon()})
    assert node.from_pod(syn()).verdict is Verdict.DEFAULT_DENY
    learn(node, WORLD, {SELECTOR + 1: soon(), SELECTOR: soon()})
    assert node.from_pod(syn(port=80)).verdict is Verdict.DEFAULT_DENY
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED
    assert node.entries("fqdn_use").keys() == {l.FqdnKey(c.POD_ID, pack(WORLD))}


def test_an_expired_name_opens_nothing_and_cuts_nothing(node: Packet) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, SELECTOR, 443)
    learn(node, WORLD, {SELECTOR: soon()})
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED
    learn(node, WORLD, {SELECTOR: c.monotonic_ns() // 10**9})
    assert node.from_pod(syn(sport=4001)).verdict is Verdict.DEFAULT_DENY
    assert node.from_pod(IP(src=POD, dst=WORLD) / TCP(sport=4000, dport=443, flags="A")).verdict is Verdict.FORWARDED


def test_a_connection_that_a_name_allowed_outlives_the_name_as_long_as_rules_let_it(node: Packet) -> None:
    """One that is silent for long, when rules change or anybody's pod comes or goes."""
    enforce(node)
    node.rule(l.ACTION_ALLOW, SELECTOR, 443)
    learn(node, WORLD, {SELECTOR: soon()})
    data = IP(src=POD, dst=WORLD) / TCP(sport=4000, dport=443, flags="A")
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED
    learn(node, WORLD, {SELECTOR: c.monotonic_ns() // 10**9})
    for generation in (2, 3):
        node.set_generation(generation)
        assert node.from_pod(data).verdict is Verdict.FORWARDED
        assert node.from_pod(syn(sport=4001)).verdict is Verdict.DEFAULT_DENY
    node.rule(l.ACTION_DENY, SELECTOR, 443)
    node.set_generation(4)
    assert node.from_pod(data).verdict is Verdict.POLICY_DENIED
    node.maps["fqdn"].delete(l.FqdnKey(c.POD_ID, pack(WORLD)).pack())
    assert node.from_pod(data).verdict is Verdict.DEFAULT_DENY


def test_all_eight_selectors_count(node: Packet) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, SELECTOR + 7, 443)
    learn(node, WORLD, {SELECTOR + i: soon() for i in range(8)})
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED


@pytest.mark.parametrize("inside", [c.NEIGHBOUR, c.REMOTE, c.NODE, c.OTHER_NODE])
def test_a_name_that_points_into_the_cluster_opens_nothing(node: Packet, inside: str) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, SELECTOR, 443)
    learn(node, inside, {SELECTOR: soon()})
    assert node.from_pod(syn(inside)).verdict is Verdict.DEFAULT_DENY


# the proxy


def test_a_redirect_without_a_proxy_is_a_drop(node: Packet) -> None:
    enforce(node)
    node.rule(l.ACTION_REDIRECT_DNS, c.REMOTE_IDENTITY, 53, protocol=17)
    node.rule(l.ACTION_ALLOW, c.REMOTE_IDENTITY, None, protocol=None)
    query = IP(src=POD, dst=c.REMOTE) / UDP(sport=4000, dport=53) / Raw(b"?")
    assert node.from_pod(query).verdict is Verdict.NO_PROXY
    assert node.from_pod(query).verdict is Verdict.NO_PROXY  # the flow exists now, the proxy still does not


@pytest.mark.parametrize("layer", [UDP, TCP])
def test_a_device_asks_the_proxy_no_more_than_its_share(node: Packet, layer: type[UDP | TCP]) -> None:
    """... for all pods wait in one queue. Another device has a share of its own."""
    enforce(node)
    number = {UDP: 17, TCP: 6}[layer]
    node.rule(l.ACTION_REDIRECT_DNS, c.REMOTE_IDENTITY, 53, protocol=number)
    node.put("dns_budget", l.Number(node.pod), l.Budget(c.monotonic_ns(3600), 2, 5))  # earns nothing
    ports = range(4000, 4005)
    verdicts = [node.from_pod(IP(src=POD, dst=c.REMOTE) / layer(sport=port, dport=53)).verdict for port in ports]
    assert verdicts == [Verdict.NO_PROXY] * 2 + [Verdict.DNS_FLOOD] * 3
    assert node.entries("dns_budget")[l.Number(node.pod)].lost == 8  # type: ignore[attr-defined]


def test_a_share_of_the_proxy_comes_back_and_no_more_than_a_burst(node: Packet) -> None:
    enforce(node)
    node.rule(l.ACTION_REDIRECT_DNS, c.REMOTE_IDENTITY, 53, protocol=17)
    query = IP(src=POD, dst=c.REMOTE) / UDP(sport=4000, dport=53) / Raw(b"?")
    assert node.from_pod(query).verdict is Verdict.NO_PROXY
    assert node.entries("dns_budget")[l.Number(node.pod)].tokens == l.DNS_BURST - 1  # type: ignore[attr-defined]
    node.put("dns_budget", l.Number(node.pod), l.Budget(c.monotonic_ns(-1), 0, 0))
    assert node.from_pod(query).verdict is Verdict.NO_PROXY
    assert node.entries("dns_budget")[l.Number(node.pod)].tokens == l.DNS_BURST - 1  # type: ignore[attr-defined]


def test_what_is_half_earned_of_a_share_is_not_lost(node: Packet) -> None:
    """Who asks every 1.9 ms where one a millisecond is given would get one every 1.9 ms, in the end."""
    enforce(node)
    node.rule(l.ACTION_REDIRECT_DNS, c.REMOTE_IDENTITY, 53, protocol=17)
    key, query = l.Number(node.pod), IP(src=POD, dst=c.REMOTE) / UDP(sport=4000, dport=53) / Raw(b"?")
    assert node.from_pod(query).verdict is Verdict.NO_PROXY
    since = c.monotonic_ns(-0.0015)
    node.put("dns_budget", key, l.Budget(since, 0, 0))
    assert node.from_pod(query).verdict is Verdict.NO_PROXY
    at = node.entries("dns_budget")[key].at  # type: ignore[attr-defined]
    earned, rest = divmod(at - since, 1_000_000_000 // l.DNS_RATE)
    assert 1 <= earned < l.DNS_BURST and rest == 0


# services


def test_a_service_is_translated_before_policy(node: Packet) -> None:
    node.service(c.SERVICE, 80, [(c.REMOTE, 8080, c.OTHER_NODE)])
    enforce(node)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, None, protocol=None)
    assert node.from_pod(syn(c.SERVICE, 80)).verdict is Verdict.DEFAULT_DENY  # the service is not "world"
    node.rule(l.ACTION_ALLOW, c.REMOTE_IDENTITY, 8080)
    result = node.from_pod(syn(c.SERVICE, 80), translated=True)
    assert result.verdict is Verdict.FORWARDED
    assert (result.frame[IP].dst, result.frame[TCP].dport) == (c.REMOTE, 8080)
    answer = node.to_pod(IP(src=c.REMOTE, dst=POD) / TCP(sport=8080, dport=4000, flags="SA"), translated=True)
    assert answer.verdict is Verdict.REPLY
    assert (answer.frame[IP].src, answer.frame[TCP].sport) == (c.SERVICE, 80)


def test_a_service_port_that_does_not_exist_is_not_routed(node: Packet) -> None:
    node.service(c.SERVICE, 80, [(c.REMOTE, 8080, c.OTHER_NODE)])
    assert node.from_pod(syn(c.SERVICE, 81)).verdict is Verdict.NO_SERVICE
    assert node.from_pod(IP(src=POD, dst=c.SERVICE) / ICMP(id=1)).verdict is Verdict.NO_SERVICE


def test_a_service_without_backends_is_a_drop(node: Packet) -> None:
    node.service(c.SERVICE, 80, [])
    assert node.from_pod(syn(c.SERVICE, 80)).verdict is Verdict.NO_BACKEND


@pytest.mark.parametrize(
    ("address", "identity"),
    [
        (c.NODE, l.IDENTITY_HOST),
        (c.OTHER_NODE, l.IDENTITY_REMOTE_NODE),
        (c.OTHER_NODE, l.IDENTITY_KUBE_APISERVER),
        (c.OTHER_NODE, l.IDENTITY_NODES),
        (c.OTHER_NODE, l.IDENTITY_NODES_END - 1),
    ],
)
def test_a_node_port_on_any_node_is_the_service(node: Packet, address: str, identity: int) -> None:
    node.identity(f"{address}/32", identity, address)
    node.service("", 30080, [(c.NEIGHBOUR, 8080, c.NODE)])
    result = node.from_pod(syn(address, 30080), translated=True)
    assert (result.frame[IP].dst, result.frame[TCP].dport) == (c.NEIGHBOUR, 8080)


def test_a_node_port_is_nothing_to_other_addresses(node: Packet) -> None:
    node.service("", 443, [(c.NEIGHBOUR, 8080, c.NODE)])
    assert node.from_pod(syn(WORLD, 443)).frame[IP].dst == WORLD


def test_an_error_about_a_packet_to_a_service_speaks_of_the_service(node: Packet) -> None:
    node.service(c.SERVICE, 80, [(c.REMOTE, 8080, c.OTHER_NODE)])
    sent = node.from_pod(syn(c.SERVICE, 80), translated=True).frame[IP]
    error = IP(src=c.OTHER_NODE, dst=POD) / ICMP(type=3, code=4, nexthopmtu=1400) / sent
    result = node.to_pod(error, translated=True)
    assert result.verdict is Verdict.REPLY
    quoted = result.frame[IPerror]
    assert (quoted.dst, result.frame[TCPerror].dport) == (c.SERVICE, 80)


def test_udp_without_a_checksum_stays_without(node: Packet) -> None:
    node.service(c.SERVICE, 53, [(c.REMOTE, 5353, c.OTHER_NODE)], protocol=17)
    result = node.from_pod(
        IP(src=POD, dst=c.SERVICE) / UDP(sport=4000, dport=53, chksum=0) / Raw(b"?"), translated=True
    )
    assert (result.frame[IP].dst, result.frame[UDP].dport, result.frame[UDP].chksum) == (c.REMOTE, 5353, 0)


# errors


def test_an_icmp_error_passes_only_for_a_flow_that_exists(node: Packet) -> None:
    enforce(node, l.ENFORCE_EGRESS | l.ENFORCE_INGRESS)
    received = IP(src=c.CLIENT, dst=POD) / UDP(sport=5000, dport=6000)
    error = IP(src=POD, dst=c.CLIENT) / ICMP(type=3, code=3) / received
    assert node.from_pod(error).verdict is Verdict.DEFAULT_DENY
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 6000, direction=l.DIRECTION_INGRESS, protocol=17)
    assert node.to_pod(received).verdict is Verdict.FORWARDED
    assert node.from_pod(error).verdict is Verdict.REPLY


@pytest.mark.parametrize(
    "quoted",
    [
        IP(src=c.CLIENT, dst=c.NEIGHBOUR) / UDP(sport=5000, dport=6000),  # not sent to this pod
        IP(src=c.OTHER_NODE, dst=POD) / UDP(sport=5000, dport=6000),  # not sent by whom the error goes to
    ],
)
def test_an_icmp_error_cannot_smuggle(node: Packet, quoted: IP) -> None:
    node.to_pod(IP(src=c.CLIENT, dst=POD) / UDP(sport=5000, dport=6000))
    result = node.from_pod(IP(src=POD, dst=c.CLIENT) / ICMP(type=3, code=3) / quoted)
    assert result.verdict in (Verdict.SPOOFED, Verdict.MALFORMED)
