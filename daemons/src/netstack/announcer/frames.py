"""Ethernet frames that speak for an address: ARP (RFC 826, RFC 5227) and unsolicited Neighbor Advertisements (RFC
4861).

Addresses are 16 bytes (IPv4 v4-mapped), MACs 6 bytes. Encoders return whole Ethernet frames without FCS. What Linux
clients do with each gratuitous form was measured: the request form always updates an entry; the reply form counts as
gratuitous only if target and sender hardware address are equal, otherwise it is ignored within a second of the last
update. So both forms are sent, the request first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from netstack.core.address import V4_MAPPED, is_v4
from netstack.core.protocol import ICMPV6

ETH_ARP = 0x0806
ETH_IPV6 = 0x86DD
BROADCAST = b"\xff" * 6
ALL_NODES_MAC = bytes.fromhex("333300000001")
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")

REQUEST, REPLY = 1, 2

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_ADVERTISEMENT = struct.Struct("!BBHI16sBB6s")

NEIGHBOR_ADVERTISEMENT = 136
OVERRIDE = 0x2000_0000
TARGET_LINK_LAYER_ADDRESS = 2
_CHECKSUM_AT = 2


class FrameError(Exception):
    """A received frame that is not what it claims to be; the text says why."""


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet for IPv4 over Ethernet."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes

    @property
    def gratuitous(self) -> bool:
        """It announces its sender's own address (RFC 5227, section 3)."""
        return self.sender == self.target


def encode_arp(arp: Arp, source: bytes, destination: bytes) -> bytes:
    body = _ARP.pack(1, 0x0800, 6, 4, arp.operation, arp.sender_mac, arp.sender[12:], arp.target_mac, arp.target[12:])
    return _ETHERNET.pack(destination, source, ETH_ARP) + body


def decode_arp(frame: bytes) -> Arp:
    """The ARP packet in an Ethernet frame; FrameError if it is cut short or speaks of other kinds of addresses."""
    if len(frame) < _ETHERNET.size + _ARP.size:
        raise FrameError(f"ARP frame of {len(frame)} bytes is cut short")
    if _ETHERNET.unpack_from(frame)[2] != ETH_ARP:
        raise FrameError("not an ARP frame")
    hardware, protocol, hardware_size, protocol_size, operation, sender_mac, sender, target_mac, target = (
        _ARP.unpack_from(frame, _ETHERNET.size)
    )
    if (hardware, protocol, hardware_size, protocol_size) != (1, 0x0800, 6, 4):
        raise FrameError(f"ARP for hardware {hardware} and protocol {protocol:#06x} is not IPv4 over Ethernet")
    if operation not in (REQUEST, REPLY):
        raise FrameError(f"ARP operation {operation} is neither request nor reply")
    return Arp(operation, sender_mac, V4_MAPPED + sender, target_mac, V4_MAPPED + target)


def announcements(address: bytes, mac: bytes) -> list[bytes]:
    """The frames that move every listener's neighbour entry for `address` to `mac`, in the order to send them."""
    if not is_v4(address):
        return [unsolicited_advertisement(address, mac)]
    request = Arp(REQUEST, mac, address, bytes(6), address)
    reply = Arp(REPLY, mac, address, mac, address)
    return [encode_arp(request, mac, BROADCAST), encode_arp(reply, mac, BROADCAST)]


def arp_request(sender: bytes, sender_mac: bytes, target: bytes, destination: bytes = BROADCAST) -> bytes:
    """Ask who has `target`. RFC 826 has every receiver that knows `sender` merge its new MAC before it answers, so
    from a moved address this also updates routers that ignore gratuitous ARP."""
    return encode_arp(Arp(REQUEST, sender_mac, sender, bytes(6), target), sender_mac, destination)


def unsolicited_advertisement(address: bytes, mac: bytes) -> bytes:
    """RFC 4861, section 7.2.6: Override set, Solicited clear, to all nodes, hop limit 255."""
    body = bytearray(
        _ADVERTISEMENT.pack(NEIGHBOR_ADVERTISEMENT, 0, 0, OVERRIDE, address, TARGET_LINK_LAYER_ADDRESS, 1, mac)
    )
    pseudo = address + ALL_NODES + struct.pack("!II", len(body), ICMPV6)
    struct.pack_into("!H", body, _CHECKSUM_AT, internet_checksum(pseudo + body))
    header = _IPV6.pack(6 << 28, len(body), ICMPV6, 255, address, ALL_NODES)
    return _ETHERNET.pack(ALL_NODES_MAC, mac, ETH_IPV6) + header + bytes(body)


def internet_checksum(data: bytes) -> int:
    """RFC 1071 over an even number of bytes: 0 when `data` holds its own correct checksum."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
