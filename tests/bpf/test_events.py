"""What the programs tell of packets: every drop and every first packet, once, for a bounded price."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet as Frame

from bpf import packet as c
from bpf.packet import CLIENT, CLIENT_MAC, HOST_MAC, NODE_MAC, POD, POD_ID, POD_IDENTITY, POD_MAC, VIP, Packet
from netstack.core.address import ANY, pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel.bpf import Map
from netstack.kernel.ring import Ring

pytestmark = pytest.mark.root
WORLD = "203.0.113.9"


class Told:
    """The events since the last look."""

    def __init__(self, node: Packet) -> None:
        table = node.maps["events"]
        self.ring = Ring(Map(os.dup(table.fd), table.name))

    def __call__(self) -> list[l.Event]:
        return [l.Event.unpack(record) for record in self.ring.read()]

    def one(self) -> l.Event:
        (event,) = self()
        return event


@pytest.fixture
def told(node: Packet) -> Iterator[Told]:
    made = Told(node)
    with closing(made.ring):
        yield made


def syn(to: str = WORLD, port: int = 443, sport: int = 4000, src: str = POD) -> Frame:
    return IP(src=src, dst=to) / TCP(sport=sport, dport=port, flags="S")


def ack(frame: Frame) -> Frame:
    """The answer to a first packet."""
    return IP(src=frame[IP].dst, dst=frame[IP].src) / TCP(sport=frame[TCP].dport, dport=frame[TCP].sport, flags="SA")


def enforce(node: Packet, bits: int = l.ENFORCE_EGRESS) -> None:
    node.endpoint(POD, POD_ID, POD_IDENTITY, enforce=bits)


def test_a_flow_is_told_of_once_with_the_rule_that_allowed_it(node: Packet, told: Told) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 443, number=7)
    before = c.monotonic_ns()
    node.from_pod(syn())
    event = told.one()
    assert before <= event.at <= c.monotonic_ns()
    assert event == l.Event(
        event.at, pack(POD), pack(WORLD), 4000, 443, 6, Verdict.FORWARDED, l.DIRECTION_EGRESS, 2, POD_ID,
        l.IDENTITY_WORLD, 7, node.pod, 0,
    )  # fmt: skip
    node.to_pod(ack(syn()))
    node.from_pod(IP(src=POD, dst=WORLD) / TCP(sport=4000, dport=443, flags="A"))
    assert told() == []


@pytest.mark.parametrize(
    ("action", "verdict", "rule"),
    [(l.ACTION_DENY, Verdict.POLICY_DENIED, 7), (None, Verdict.DEFAULT_DENY, 0)],
)
def test_a_denied_packet_names_its_rule_or_that_there_is_none(
    node: Packet, told: Told, action: int | None, verdict: Verdict, rule: int
) -> None:
    enforce(node, l.ENFORCE_INGRESS)
    if action:
        node.rule(action, c.REMOTE_IDENTITY, 80, direction=l.DIRECTION_INGRESS, number=7)
    assert node.to_pod(syn(to=POD, src=c.REMOTE, port=80)).verdict is verdict
    event = told.one()
    assert (event.verdict, event.rule, event.peer) == (verdict, rule, c.REMOTE_IDENTITY)
    assert (event.endpoint, event.direction) == (POD_ID, l.DIRECTION_INGRESS)


def test_what_repeats_itself_is_counted_until_it_is_told_again(node: Packet, told: Told) -> None:
    enforce(node)
    for port in range(4000, 4003):
        node.from_pod(syn(sport=port))
    assert told.one().repeats == 0
    ((key, seen),) = node.entries("event_seen").items()
    assert isinstance(seen, l.EventSeen) and seen.repeats == 2
    node.put("event_seen", key, l.EventSeen(seen.at - l.EVENT_REPEAT, seen.repeats))
    node.from_pod(syn())
    assert told.one().repeats == 2


def test_another_peer_port_protocol_or_verdict_is_news(node: Packet, told: Told) -> None:
    enforce(node)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 80)
    frames = [syn(), syn(to="203.0.113.10"), syn(port=80), IP(src=POD, dst=WORLD) / UDP(sport=4000, dport=443)]
    for frame in frames * 2:
        node.from_pod(frame)
    assert len(told()) == 4


def test_a_device_that_tells_too_much_spends_its_own_share(node: Packet, told: Told) -> None:
    enforce(node)
    node.put("event_budget", l.Number(node.pod), l.Budget(c.monotonic_ns(3600), 2, 0))  # earns nothing
    for port in range(1, 6):
        node.from_pod(syn(port=port))
    assert [event.port for event in told()] == [1, 2]
    assert node.entries("event_budget")[l.Number(node.pod)].lost == 3  # type: ignore[attr-defined]
    node.from_pod(syn(src=c.NEIGHBOUR, port=9), device=node.neighbour)
    assert told.one().ifindex == node.neighbour


def test_tokens_come_back_and_no_more_than_a_burst(node: Packet, told: Told) -> None:
    enforce(node)
    node.put("event_budget", l.Number(node.pod), l.Budget(c.monotonic_ns(-1), l.EVENT_BURST - 5, 5))
    node.from_pod(syn())
    assert told.one().port == 443
    budget = node.entries("event_budget")[l.Number(node.pod)]
    assert isinstance(budget, l.Budget) and (budget.tokens, budget.lost) == (l.EVENT_BURST - 1, 5)


@pytest.mark.parametrize(
    ("frame", "verdict", "source"),
    [
        (Ether(src=POD_MAC, dst=HOST_MAC) / syn(src="10.244.1.9"), Verdict.SPOOFED, "10.244.1.9"),
        (Ether(src=POD_MAC, dst=HOST_MAC) / Dot1Q(vlan=7) / syn(), Verdict.UNSUPPORTED, ""),
        (Ether(src=POD_MAC, dst=HOST_MAC, type=0x88B5) / (b"x" * 60), Verdict.UNSUPPORTED, ""),
        (Ether(src=POD_MAC) / ARP(hwsrc=POD_MAC, psrc=c.NEIGHBOUR, pdst=c.GATEWAY), Verdict.SPOOFED, ""),
    ],
    ids=["address", "vlan", "ethertype", "arp"],
)
def test_what_no_pod_may_send_is_told_with_its_device(
    node: Packet, told: Told, frame: Frame, verdict: Verdict, source: str
) -> None:
    node.from_pod(syn())  # working memory holds another packet
    told()
    assert node.run("pod_ingress", frame, device=node.pod, came_by=node.pod).verdict is verdict
    event = told.one()
    assert (event.verdict, event.ifindex, event.endpoint, event.direction) == (verdict, node.pod, 0, 0)
    assert event.source == (pack(source) if source else ANY)


def test_a_dropped_packet_of_the_lan_is_told_and_what_only_passes_is_not(node: Packet, told: Told) -> None:
    node.service(VIP, 80, [(POD, 8080, c.NODE)], scope=l.SCOPE_WORLD)
    node.from_lan(IP(src=CLIENT, dst=c.NODE) / TCP(sport=4000, dport=22, flags="S"))
    assert told() == []
    assert node.from_lan(syn(to=VIP, src=CLIENT, port=81)).verdict is Verdict.NO_SERVICE
    event = told.one()
    assert (event.port, event.destination, event.ifindex) == (81, pack(VIP), node.uplink)


def test_arp_for_an_address_of_another_node_is_no_event(node: Packet, told: Told) -> None:
    node.vip(VIP, 0)
    question = Ether(src=CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=CLIENT_MAC, psrc=CLIENT, pdst=VIP)
    assert node.from_lan(question).verdict is Verdict.VIP_NOT_OWNED
    assert told() == []
    assert NODE_MAC != CLIENT_MAC


# policies on trial


def trial(node: Packet, bits: int = l.AUDIT | l.AUDIT_EGRESS) -> None:
    enforce(node, bits)


def test_what_a_policy_on_trial_would_deny_passes_and_is_told(node: Packet, told: Told) -> None:
    trial(node)
    assert node.from_pod(syn()).verdict is Verdict.FORWARDED
    event = told.one()
    assert (event.verdict, event.rule) == (Verdict.AUDITED, 0)
    assert node.to_pod(ack(syn())).verdict is Verdict.REPLY
    assert told() == []


def test_the_rule_on_trial_that_would_deny_is_named(node: Packet, told: Told) -> None:
    trial(node, l.AUDIT)
    node.rule(l.ACTION_DENY, l.IDENTITY_WORLD, 443, direction=l.DIRECTION_EGRESS + l.DIRECTION_AUDIT, number=9)
    node.from_pod(syn())
    assert (event := told.one()).verdict == Verdict.AUDITED and event.rule == 9
    node.from_pod(syn(port=80))
    assert told.one().verdict == Verdict.FORWARDED


def test_what_a_policy_on_trial_allows_is_an_ordinary_flow(node: Packet, told: Told) -> None:
    trial(node)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 443, direction=l.DIRECTION_EGRESS + l.DIRECTION_AUDIT)
    node.from_pod(syn())
    assert told.one().verdict == Verdict.FORWARDED


def test_a_policy_on_trial_opens_nothing(node: Packet, told: Told) -> None:
    enforce(node, l.ENFORCE_EGRESS | l.AUDIT | l.AUDIT_EGRESS)
    node.rule(l.ACTION_ALLOW, l.IDENTITY_WORLD, 443, direction=l.DIRECTION_EGRESS + l.DIRECTION_AUDIT)
    assert node.from_pod(syn()).verdict is Verdict.DEFAULT_DENY
    assert told.one().verdict == Verdict.DEFAULT_DENY


def test_flows_that_are_under_way_are_tried_too(node: Packet, told: Told) -> None:
    node.from_pod(syn())
    told()
    trial(node)
    node.set_generation(2)
    node.from_pod(IP(src=POD, dst=WORLD) / TCP(sport=4000, dport=443, flags="A"))
    assert told.one().verdict == Verdict.AUDITED


def test_what_policies_on_trial_for_the_node_would_deny_its_own_pods_is_told(node: Packet, told: Told) -> None:
    node.guard(l.AUDIT | l.AUDIT_INGRESS)
    assert node.from_pod(syn(c.NODE, 8080)).verdict is Verdict.FORWARDED
    event = told.one()
    assert (event.verdict, event.endpoint, event.direction) == (Verdict.AUDITED, l.HOST_ENDPOINT, l.DIRECTION_INGRESS)
    assert event.peer == POD_IDENTITY
