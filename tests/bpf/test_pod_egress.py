"""What a pod may receive: the door by which it came, then policy, then conntrack's memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from bpf import packet as c
from bpf.packet import CLIENT, POD, Packet
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l

pytestmark = pytest.mark.root


def syn(src: str = CLIENT, dport: int = 80, sport: int = 5000, flags: str = "S") -> IP:
    return IP(src=src, dst=POD) / TCP(sport=sport, dport=dport, flags=flags)


def out(dst: str = CLIENT, sport: int = 80, dport: int = 5000, flags: str = "A") -> IP:
    return IP(src=POD, dst=dst) / TCP(sport=sport, dport=dport, flags=flags)


def enforce(node: Packet, directions: int = l.ENFORCE_INGRESS) -> None:
    node.endpoint(POD, c.POD_ID, c.POD_IDENTITY, enforce=directions)


def allow(node: Packet, peer: int, port: int | None = 80) -> None:
    node.rule(l.ACTION_ALLOW, peer, port, direction=l.DIRECTION_INGRESS)


# the door


def test_an_address_that_is_no_pod_of_this_device_receives_nothing(node: Packet) -> None:
    assert node.to_pod(IP(src=CLIENT, dst="10.244.1.9") / TCP()).verdict is Verdict.NO_ENDPOINT
    assert node.to_pod(syn(), device=node.neighbour).verdict is Verdict.NO_ENDPOINT


@pytest.mark.parametrize(
    ("source", "door"),
    [
        (c.NEIGHBOUR, "uplink"),  # a local pod's address from the LAN
        (c.NEIGHBOUR, "pod"),  # from another pod
        (c.REMOTE, "neighbour"),  # a remote pod's from a pod
        (c.OTHER_NODE, "neighbour"),
        (c.NODE, "uplink"),  # our own from the LAN
        ("10.244.2.77", "neighbour"),  # any address of a remote PodCIDR
    ],
)
def test_a_cluster_address_through_another_door_is_spoofed(node: Packet, source: str, door: str) -> None:
    allow(node, l.IDENTITY_ANY, None)
    assert node.to_pod(syn(source), came_by=getattr(node, door)).verdict is Verdict.SPOOFED


@pytest.mark.parametrize(
    ("source", "door"), [(c.NEIGHBOUR, "neighbour"), (c.REMOTE, "uplink"), (c.OTHER_NODE, "uplink"), (CLIENT, "uplink")]
)
def test_every_address_has_its_own_door(node: Packet, source: str, door: str) -> None:
    assert node.to_pod(syn(source), came_by=getattr(node, door)).verdict is Verdict.FORWARDED


@pytest.mark.parametrize(
    ("frame", "verdict"),
    [
        (IP(src=CLIENT, dst=POD, flags="MF") / UDP() / Raw(b"x" * 32), Verdict.FRAGMENT),
        (IP(src=CLIENT, dst=POD, frag=4) / Raw(b"x" * 32), Verdict.FRAGMENT),
        (IP(src=CLIENT, dst=POD, options=b"\x94\x04\x00\x00") / TCP(), Verdict.UNSUPPORTED),
        (IP(src=CLIENT, dst=POD, proto=4) / IP() / TCP(), Verdict.UNSUPPORTED),
        (IP(src=CLIENT, dst=POD) / ICMP(type=5) / IP(src=POD, dst=CLIENT) / UDP(), Verdict.UNSUPPORTED),
    ],
    ids=str,
)
def test_what_nobody_understands_is_dropped(node: Packet, frame: IP, verdict: Verdict) -> None:
    assert node.to_pod(frame).verdict is verdict


def test_frames_of_other_kinds_do_not_reach_a_pod(node: Packet) -> None:
    for frame in (Ether(type=0x88B5) / Raw(b"x" * 60), Ether() / Dot1Q(vlan=3) / syn()):
        assert node.run("pod_egress", frame, device=node.pod).verdict is Verdict.UNSUPPORTED


def test_the_nodes_own_arp_reaches_the_pod(node: Packet) -> None:
    frame = Ether() / ARP(pdst=POD)
    assert node.run("pod_egress", frame, device=node.pod).verdict is Verdict.FORWARDED


# policy


def test_default_deny_and_a_rule_for_the_peer(node: Packet) -> None:
    enforce(node)
    assert node.to_pod(syn(c.NEIGHBOUR), came_by=node.neighbour).verdict is Verdict.DEFAULT_DENY
    allow(node, c.NEIGHBOUR_IDENTITY)
    assert node.to_pod(syn(c.NEIGHBOUR), came_by=node.neighbour).verdict is Verdict.FORWARDED
    assert node.to_pod(syn(c.NEIGHBOUR, dport=81), came_by=node.neighbour).verdict is Verdict.DEFAULT_DENY
    assert node.to_pod(syn(), came_by=node.uplink).verdict is Verdict.DEFAULT_DENY


def test_a_remote_pod_not_yet_known_is_unmanaged_not_world(node: Packet) -> None:
    enforce(node)
    allow(node, l.IDENTITY_WORLD)
    assert node.to_pod(syn("10.244.2.77")).verdict is Verdict.DEFAULT_DENY
    assert node.to_pod(syn(c.OTHER_NODE)).verdict is Verdict.DEFAULT_DENY
    assert node.to_pod(syn()).verdict is Verdict.FORWARDED


def test_a_node_always_reaches_its_own_pods(node: Packet) -> None:
    enforce(node)
    node.rule(l.ACTION_DENY, l.IDENTITY_ANY, None, direction=l.DIRECTION_INGRESS, protocol=None)
    assert node.to_pod(syn(c.NODE), came_by=0).verdict is Verdict.FORWARDED
    assert node.from_pod(out(c.NODE)).verdict is Verdict.REPLY
    node.set_generation(2)
    assert node.from_pod(out(c.NODE)).verdict is Verdict.REPLY


def test_a_redirect_makes_no_sense_inbound(node: Packet) -> None:
    node.rule(l.ACTION_REDIRECT_DNS, l.IDENTITY_WORLD, 80, direction=l.DIRECTION_INGRESS)
    assert node.to_pod(syn()).verdict is Verdict.POLICY_DENIED


# conntrack


def test_a_reply_passes_against_default_deny_and_only_a_reply(node: Packet) -> None:
    enforce(node, l.ENFORCE_INGRESS | l.ENFORCE_EGRESS)
    allow(node, l.IDENTITY_WORLD)
    assert node.from_pod(out(flags="SA")).verdict is Verdict.DEFAULT_DENY
    assert node.to_pod(syn()).verdict is Verdict.FORWARDED
    assert node.from_pod(out(flags="SA")).verdict is Verdict.REPLY
    for other in (out(dport=5001), out(sport=81), out(dst="192.168.86.51")):
        assert node.from_pod(other).verdict is Verdict.DEFAULT_DENY
    assert node.from_pod(IP(src=POD, dst=CLIENT) / UDP(sport=80, dport=5000)).verdict is Verdict.DEFAULT_DENY


def test_a_syn_against_the_flow_is_a_connection_of_its_own(node: Packet) -> None:
    enforce(node, l.ENFORCE_EGRESS)
    assert node.to_pod(syn()).verdict is Verdict.FORWARDED
    assert node.from_pod(out(flags="S")).verdict is Verdict.DEFAULT_DENY
    assert node.from_pod(out(flags="SA")).verdict is Verdict.REPLY


def test_an_expired_flow_is_absent(node: Packet) -> None:
    enforce(node, l.ENFORCE_EGRESS)
    node.to_pod(syn())
    ((key, flow),) = node.flows().items()
    node.put_flow(key, replace(flow, deadline=c.monotonic_ns() - 1))
    assert node.from_pod(out(flags="SA")).verdict is Verdict.DEFAULT_DENY


def assert_lives(node: Packet, seconds: int, since: int) -> None:
    """The one flow was given this life by a packet that was sent between `since` (monotonic, ns) and now."""
    ((_, flow),) = node.flows().items()
    assert since <= flow.deadline - seconds * 1_000_000_000 <= c.monotonic_ns()


def test_lives_are_ciliums(node: Packet) -> None:
    since = c.monotonic_ns()
    node.to_pod(syn())
    assert_lives(node, 60, since)
    node.from_pod(out(flags="SA"))
    node.to_pod(syn(flags="A"))
    assert_lives(node, 8000, since)
    node.to_pod(syn(flags="FA"))
    assert_lives(node, 8000, since)  # half closed is not closed
    node.from_pod(out(flags="FA"))
    assert_lives(node, 10, since)


def test_a_reset_closes_at_once(node: Packet) -> None:
    since = c.monotonic_ns()
    node.to_pod(syn())
    node.from_pod(out(flags="SA"))
    node.from_pod(out(flags="RA"))
    assert_lives(node, 10, since)


def test_a_reset_of_the_peer_may_be_anybodys_and_is_forgotten_with_the_next_packet(node: Packet) -> None:
    """Whoever knows the ports can send one; a pod ignores it if its number is wrong, and waits for the next word."""
    node.from_pod(out(flags="S", sport=4000, dport=443))
    node.to_pod(syn(flags="SA", sport=443, dport=4000))
    since = c.monotonic_ns()
    assert node.to_pod(syn(flags="R", sport=443, dport=4000)).verdict is Verdict.REPLY
    assert_lives(node, 60, since)
    node.to_pod(syn(flags="A", sport=443, dport=4000))
    assert_lives(node, 8000, since)


def test_a_syn_on_a_closing_flow_is_judged_again(node: Packet) -> None:
    enforce(node)
    allow(node, l.IDENTITY_WORLD)
    node.to_pod(syn())
    node.to_pod(syn(flags="FA"))
    node.rule(l.ACTION_DENY, l.IDENTITY_WORLD, 80, direction=l.DIRECTION_INGRESS)
    assert node.to_pod(syn(flags="A")).verdict is Verdict.FORWARDED  # the same generation still
    assert node.to_pod(syn()).verdict is Verdict.POLICY_DENIED


@pytest.mark.parametrize("first", ["reply", "forward"])
def test_another_generation_is_judged_in_the_first_packets_direction(node: Packet, first: str) -> None:
    enforce(node, l.ENFORCE_INGRESS | l.ENFORCE_EGRESS)
    allow(node, l.IDENTITY_WORLD)
    node.to_pod(syn())
    node.from_pod(out(flags="SA"))
    node.set_generation(2)  # the rule is still there: nothing is cut
    assert node.from_pod(out()).verdict is Verdict.REPLY
    ((_, flow),) = node.flows().items()
    assert flow.generation == 2
    key = l.PolicyKey(l.POLICY_BITS_PORT, c.POD_ID, l.IDENTITY_WORLD, l.DIRECTION_INGRESS, 6, 80)
    node.maps["policy"].delete(key.pack())
    node.set_generation(3)
    run = {"reply": lambda: node.from_pod(out()), "forward": lambda: node.to_pod(syn(flags="A"))}
    for _ in range(2):
        assert run[first]().verdict is Verdict.DEFAULT_DENY
        assert node.from_pod(out()).verdict is Verdict.DEFAULT_DENY
        assert node.to_pod(syn(flags="A")).verdict is Verdict.DEFAULT_DENY


def test_a_flow_that_a_policy_ended_does_not_begin_again_from_its_other_side(node: Packet) -> None:
    """The server's next packet is not denied by its egress: it must not make the connection the server's own."""
    enforce(node, l.ENFORCE_INGRESS)
    allow(node, l.IDENTITY_WORLD)
    node.to_pod(syn())
    node.from_pod(out(flags="SA"))
    node.maps["policy"].delete(
        l.PolicyKey(l.POLICY_BITS_PORT, c.POD_ID, l.IDENTITY_WORLD, l.DIRECTION_INGRESS, 6, 80).pack()
    )
    node.set_generation(2)
    for _ in range(3):
        assert node.from_pod(out(flags="A")).verdict is Verdict.DEFAULT_DENY
        assert node.to_pod(syn(flags="A")).verdict is Verdict.DEFAULT_DENY
    assert node.to_pod(syn()).verdict is Verdict.DEFAULT_DENY
    assert node.from_pod(out(flags="S")).verdict is Verdict.FORWARDED  # a connection of its own, with the same ports


def test_the_next_pod_with_an_address_inherits_nothing(node: Packet) -> None:
    enforce(node, l.ENFORCE_EGRESS)
    node.to_pod(syn())
    node.endpoint(POD, 99, c.POD_IDENTITY, enforce=l.ENFORCE_EGRESS)
    assert node.from_pod(out(flags="SA")).verdict is Verdict.DEFAULT_DENY


def test_answers_to_what_the_proxy_took_come_from_the_proxy_only(node: Packet) -> None:
    enforce(node)
    flow = l.Flow(c.monotonic_ns(60), 1, 7, l.DIRECTION_EGRESS, l.FLOW_REDIRECT)
    node.put_flow(l.FlowKey(c.POD_ID, pack(c.REMOTE), 53, 4000, 17), flow)
    answer = IP(src=c.REMOTE, dst=POD) / UDP(sport=53, dport=4000) / Raw(b"!")
    assert node.to_pod(answer, came_by=node.uplink).verdict is Verdict.SPOOFED
    assert node.to_pod(answer, came_by=0).verdict is Verdict.REPLY


@pytest.mark.parametrize("layer", [UDP, TCP])
def test_an_answer_that_is_too_late_for_the_proxy_opens_no_way_past_it(node: Packet, layer: type[UDP | TCP]) -> None:
    """The proxy asks in the pod's name. By a flow from the server's port the pod could ask the server for any name."""
    node.endpoint(POD, c.POD_ID, c.POD_IDENTITY, enforce=l.ENFORCE_EGRESS | l.PROXIED)
    number = {UDP: 17, TCP: 6}[layer]
    node.rule(l.ACTION_REDIRECT_DNS, c.REMOTE_IDENTITY, 53, protocol=number)
    late = IP(src=c.REMOTE, dst=POD) / layer(sport=53, dport=33000) / Raw(b"!")
    question = IP(src=POD, dst=c.REMOTE) / layer(sport=33000, dport=53) / Raw(b"?")
    if layer is TCP:
        late[TCP].flags = question[TCP].flags = "A"
    assert node.to_pod(late).verdict is Verdict.NO_PROXY
    assert node.from_pod(question).verdict is Verdict.NO_PROXY, "it goes to the proxy, which is not there"
    for source, port in ((c.REMOTE, 54), (CLIENT, 53)):
        assert node.to_pod(IP(src=source, dst=POD) / layer(sport=port, dport=33000)).verdict is Verdict.FORWARDED


def test_a_flow_from_a_dns_server_does_not_outlive_a_policy_that_names(node: Packet) -> None:
    """Who is to be restricted could have made one before."""
    sent = IP(src=c.REMOTE, dst=POD) / UDP(sport=53, dport=33000) / Raw(b"!")
    back = IP(src=POD, dst=c.REMOTE) / UDP(sport=33000, dport=53) / Raw(b"?")
    assert node.to_pod(sent).verdict is Verdict.FORWARDED
    assert node.from_pod(back).verdict is Verdict.REPLY
    node.endpoint(POD, c.POD_ID, c.POD_IDENTITY, enforce=l.ENFORCE_EGRESS | l.PROXIED)
    node.rule(l.ACTION_REDIRECT_DNS, c.REMOTE_IDENTITY, 53, protocol=17)
    node.set_generation(2)
    assert node.from_pod(back).verdict is node.to_pod(sent).verdict is Verdict.NO_PROXY


def test_an_icmp_error_about_a_flow_passes_from_any_router(node: Packet) -> None:
    enforce(node)
    sent = IP(src=POD, dst="203.0.113.9") / TCP(sport=4000, dport=443, flags="S")
    error = IP(src="198.51.100.1", dst=POD) / ICMP(type=3, code=4, nexthopmtu=1400) / sent
    assert node.to_pod(error).verdict is Verdict.DEFAULT_DENY
    node.from_pod(sent)
    assert node.to_pod(error).verdict is Verdict.REPLY


def test_ipv6_takes_the_same_path(node: Packet) -> None:
    node.endpoint("fd00:1::3", c.POD_ID, c.POD_IDENTITY, enforce=l.ENFORCE_INGRESS)
    connect = IPv6(src="fd00:9::1", dst="fd00:1::3") / TCP(sport=5000, dport=80, flags="S")
    assert node.to_pod(connect).verdict is Verdict.DEFAULT_DENY
    allow(node, l.IDENTITY_WORLD)
    assert node.to_pod(connect).verdict is Verdict.FORWARDED
    spoofed = IPv6(src="fd00:2::1", dst="fd00:1::3") / TCP(sport=5000, dport=80, flags="S")
    assert node.to_pod(spoofed, came_by=node.neighbour).verdict is Verdict.SPOOFED


def test_an_icmp_error_prolongs_nothing(node: Packet) -> None:
    sent = IP(src=POD, dst="203.0.113.9") / TCP(sport=4000, dport=443, flags="S")
    node.from_pod(sent)
    ((key, flow),) = node.flows().items()
    soon = replace(flow, deadline=c.monotonic_ns(20))
    node.put_flow(key, soon)
    assert node.to_pod(IP(src="198.51.100.1", dst=POD) / ICMP(type=11) / sent).verdict is Verdict.REPLY
    assert node.flows() == {key: soon}


def test_an_icmp_error_does_not_pass_the_proxy_by(node: Packet) -> None:
    flow = l.Flow(c.monotonic_ns(60), 1, 7, l.DIRECTION_EGRESS, l.FLOW_REDIRECT)
    node.put_flow(l.FlowKey(c.POD_ID, pack(c.REMOTE), 53, 4000, 17), flow)
    answer = IP(src=c.REMOTE, dst=POD) / UDP(sport=53, dport=4000)
    error = IP(src=POD, dst=c.REMOTE) / ICMP(type=3, code=3) / answer / Raw(b"words for the server")
    assert node.from_pod(error).verdict is Verdict.UNSUPPORTED
