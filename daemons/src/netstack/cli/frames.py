"""The packets that `netstack explain` sends through the programs, and what is read from those that come out. Pure.

Checksums are left zero: no program checks one, and none of these packets ever leaves.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netstack.core.address import V4_MAPPED, is_v4
from netstack.core.protocol import PROTOCOLS

WITH_PORTS = ("TCP", "UDP", "SCTP")
IPV4, IPV6 = 0x0800, 0x86DD
SOURCE_PORT = 40000
TCP_SYN = 2
TTL = 64


@dataclass(frozen=True, slots=True)
class Flow:
    """Addresses of 16 bytes. `port` 0 with ICMP, which is asked by an echo request."""

    source: bytes
    destination: bytes
    port: int
    protocol: str


def first_packet(flow: Flow, source_mac: bytes, destination_mac: bytes) -> bytes:
    """The packet that starts the flow, in an Ethernet frame."""
    transport = _transport(flow)
    number = PROTOCOLS[flow.protocol]
    if is_v4(flow.source):
        kind, addresses = IPV4, flow.source[12:] + flow.destination[12:]
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(transport), 0, 0, TTL, number, 0) + addresses
    else:
        kind = IPV6
        header = struct.pack("!IHBB", 6 << 28, len(transport), number, TTL) + flow.source + flow.destination
    return destination_mac + source_mac + struct.pack("!H", kind) + header + transport


def _transport(flow: Flow) -> bytes:
    match flow.protocol:
        case "TCP":
            return struct.pack("!HHIIBBHHH", SOURCE_PORT, flow.port, 0, 0, 5 << 4, TCP_SYN, 65535, 0, 0)
        case "UDP":
            return struct.pack("!HHHH", SOURCE_PORT, flow.port, 8, 0)
        case "SCTP":  # INIT: RFC 9260 section 3.3.2
            return struct.pack("!HHIIBBHIIHHI", SOURCE_PORT, flow.port, 0, 0, 1, 0, 20, 1, 65535, 1, 1, 1)
        case "ICMP":
            return struct.pack("!BBHHH", 8, 0, 0, SOURCE_PORT, 1)
        case _:
            return struct.pack("!BBHHH", 128, 0, 0, SOURCE_PORT, 1)


def destination(frame: bytes) -> tuple[bytes, int]:
    """Address and port to which a frame made by `first_packet` goes after a program has had it."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    if kind == IPV4:
        address, number, transport = V4_MAPPED + frame[30:34], frame[23], 34
    else:
        address, number, transport = frame[38:54], frame[20], 54
    ported = number in (PROTOCOLS[name] for name in WITH_PORTS)
    port = struct.unpack_from("!H", frame, transport + 2)[0] if ported else 0
    return address, port
