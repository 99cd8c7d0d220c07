from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit

from netstack.cli.frames import SOURCE_PORT, Flow, destination, first_packet
from netstack.core.address import pack

HERE, THERE = bytes.fromhex("020000000103"), bytes.fromhex("0200000001fe")


@pytest.mark.parametrize(("source", "to"), [("10.244.1.3", "10.0.0.7"), ("fd00:1::3", "fd00:9::7")])
@pytest.mark.parametrize(("protocol", "layer"), [("TCP", TCP), ("UDP", UDP), ("SCTP", SCTP)])
def test_the_first_packet_of_a_flow_reads_back(source: str, to: str, protocol: str, layer: type) -> None:
    raw = first_packet(Flow(pack(source), pack(to), 443, protocol), HERE, THERE)
    frame = Ether(raw)
    assert (frame.src, frame.dst) == ("02:00:00:00:01:03", "02:00:00:00:01:fe")
    ip = frame[IPv6] if ":" in source else frame[IP]
    assert (ip.src, ip.dst) == (source, to)
    assert (frame[layer].sport, frame[layer].dport) == (SOURCE_PORT, 443)
    assert bytes(frame) == raw and not frame.haslayer("Padding") and not frame.haslayer("Raw")
    assert destination(raw) == (pack(to), 443)
    if layer is TCP:
        assert frame[TCP].flags == "S"
    if layer is SCTP:
        assert (frame[SCTPChunkInit].len, frame[SCTPChunkInit].init_tag) == (20, 1)


def test_icmp_is_asked_by_an_echo_request() -> None:
    frame = Ether(first_packet(Flow(pack("10.244.1.3"), pack("10.0.0.7"), 0, "ICMP"), HERE, THERE))
    assert frame[ICMP].type == 8
    raw = first_packet(Flow(pack("fd00::3"), pack("fd00::7"), 0, "ICMPv6"), HERE, THERE)
    assert Ether(raw).haslayer(ICMPv6EchoRequest)
    assert destination(raw) == (pack("fd00::7"), 0)
