"""What programs tell of DNS answers that went past the proxy."""

from __future__ import annotations

import os
from contextlib import closing

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet as Frame
from scapy.packet import Raw

from bpf import packet as c
from bpf.packet import POD, Packet
from netstack.core.address import pack
from netstack.core.verdict import Verdict
from netstack.kernel import layout as l
from netstack.kernel.bpf import Map
from netstack.kernel.ring import Ring

pytestmark = pytest.mark.root
SERVER, WORLD, POD6 = c.REMOTE, "203.0.113.53", "fd00:1::3"
MESSAGE = bytes(range(40))


def ask(node: Packet, server: str = SERVER, port: int = 53, layer: type[UDP | TCP] = UDP) -> None:
    assert node.from_pod(IP(src=POD, dst=server) / layer(sport=4000, dport=port)).verdict is Verdict.FORWARDED


def answer(message: bytes = MESSAGE, server: str = SERVER, sport: int = 53, dport: int = 4000) -> Frame:
    return IP(src=server, dst=POD) / UDP(sport=sport, dport=dport) / Raw(message)


def heard(node: Packet) -> list[tuple[l.Heard, bytes]]:
    ring = node.maps["heard"]
    with closing(Ring(Map(os.dup(ring.fd), ring.name))) as reading:
        return [(l.Heard.unpack(record[: l.Heard.size()]), record[l.Heard.size() :]) for record in reading.read()]


@pytest.fixture(autouse=True)
def nothing_yet(node: Packet) -> None:
    heard(node)


@pytest.mark.parametrize("message", [MESSAGE[:12], MESSAGE, b"x" * l.HEARD_BYTES], ids=len)
def test_an_answer_is_told_whole_with_who_asked_whom(node: Packet, message: bytes) -> None:
    ask(node)
    assert node.to_pod(answer(message), came_by=node.uplink).verdict is Verdict.REPLY
    assert heard(node) == [(l.Heard(pack(SERVER), c.POD_ID, len(message)), message)]


@pytest.mark.parametrize("message", [b"", MESSAGE[:11], b"x" * (l.HEARD_BYTES + 1)], ids=len)
def test_what_is_no_answer_that_anybody_reads_passes_untold(node: Packet, message: bytes) -> None:
    ask(node)
    assert node.to_pod(answer(message), came_by=node.uplink).verdict is Verdict.REPLY
    assert heard(node) == []


def test_what_the_pod_did_not_ask_for_is_not_told(node: Packet) -> None:
    ask(node, WORLD)
    ask(node, WORLD, port=54)
    frames = [answer(), answer(server=WORLD, dport=4001), answer(server=WORLD, sport=54)]
    for frame, server in zip(frames, (SERVER, WORLD, WORLD), strict=True):
        came_by = node.uplink
        assert node.to_pod(frame, came_by=came_by).verdict in (Verdict.FORWARDED, Verdict.REPLY), server
    assert heard(node) == []


def test_tcp_and_errors_are_not_told(node: Packet) -> None:
    ask(node, layer=TCP)
    tcp = IP(src=SERVER, dst=POD) / TCP(sport=53, dport=4000, flags="A") / Raw(MESSAGE)
    assert node.to_pod(tcp, came_by=node.uplink).verdict is Verdict.REPLY
    ask(node)
    error = IP(src=SERVER, dst=POD) / ICMP(type=3, code=3) / IP(src=POD, dst=SERVER) / UDP(sport=4000, dport=53)
    assert node.to_pod(error / Raw(MESSAGE), came_by=node.uplink).verdict is Verdict.REPLY
    assert heard(node) == []


def test_answers_that_came_through_the_proxy_are_not_told(node: Packet) -> None:
    node.endpoint(POD, c.POD_ID, c.POD_IDENTITY, enforce=l.ENFORCE_EGRESS)
    node.rule(l.ACTION_REDIRECT_DNS, c.REMOTE_IDENTITY, 53, protocol=17)
    assert node.from_pod(IP(src=POD, dst=SERVER) / UDP(sport=4000, dport=53)).verdict is Verdict.NO_PROXY
    assert node.to_pod(answer(), came_by=0).verdict is Verdict.REPLY
    assert heard(node) == []


def test_ipv6(node: Packet) -> None:
    node.endpoint(POD6, c.POD_ID, c.POD_IDENTITY)
    asked = IPv6(src=POD6, dst="2001:db8::53") / UDP(sport=4000, dport=53)
    assert node.from_pod(asked).verdict is Verdict.FORWARDED
    frame = IPv6(src="2001:db8::53", dst=POD6) / UDP(sport=53, dport=4000) / Raw(MESSAGE)
    assert node.to_pod(frame, came_by=node.uplink).verdict is Verdict.REPLY
    assert heard(node) == [(l.Heard(pack("2001:db8::53"), c.POD_ID, len(MESSAGE)), MESSAGE)]


def test_a_device_has_its_share_of_the_ring(node: Packet) -> None:
    ask(node)
    node.put("heard_budget", l.Number(node.pod), l.Budget(c.monotonic_ns(3600), 2, 0))  # earns nothing
    for _ in range(5):
        assert node.to_pod(answer(), came_by=node.uplink).verdict is Verdict.REPLY
    assert len(heard(node)) == 2
    assert node.entries("heard_budget")[l.Number(node.pod)].lost == 3  # type: ignore[attr-defined]
