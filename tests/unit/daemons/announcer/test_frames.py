"""ARP and Neighbor Advertisements, byte by byte against the RFCs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netstack.announcer.frames import (
    ALL_NODES_MAC,
    BROADCAST,
    REPLY,
    REQUEST,
    Arp,
    FrameError,
    announcements,
    arp_request,
    decode_arp,
    encode_arp,
    internet_checksum,
)
from netstack.core.address import V4_MAPPED, pack

MAC = bytes.fromhex("020000000001")
VIP = pack("192.168.86.18")

macs = st.binary(min_size=6, max_size=6)
v4 = st.binary(min_size=4, max_size=4).map(lambda tail: V4_MAPPED + tail)


def test_gratuitous_arp_is_a_request_and_then_a_reply_that_linux_takes_as_gratuitous() -> None:
    first, second = (decode_arp(frame) for frame in announcements(VIP, MAC))
    assert first == Arp(REQUEST, MAC, VIP, bytes(6), VIP)
    assert second == Arp(REPLY, MAC, VIP, MAC, VIP)
    assert first.gratuitous and second.gratuitous
    assert all(frame[:6] == BROADCAST and frame[6:12] == MAC for frame in announcements(VIP, MAC))


def test_a_question_to_the_gateway_comes_from_the_moved_address() -> None:
    gateway_mac = bytes.fromhex("0200000000fe")
    frame = arp_request(VIP, MAC, pack("192.168.86.1"), gateway_mac)
    assert frame.hex() == (
        "0200000000fe" "020000000001" "0806" "0001" "0800" "06" "04" "0001"
        "020000000001" "c0a85612" "000000000000" "c0a85601"
    )  # fmt: skip
    assert not decode_arp(frame).gratuitous


def test_unsolicited_neighbor_advertisement() -> None:
    address = pack("fd00::18")
    (frame,) = announcements(address, MAC)
    assert frame[:6] == ALL_NODES_MAC
    assert frame[14 + 7] == 255  # RFC 4861, section 7.1.2: any other hop limit is discarded
    body = frame[54:]
    assert (body[0], body[1], body[4]) == (136, 0, 0x20)  # Override, neither Router nor Solicited
    assert body[8:24] == address
    assert body[24:] == b"\x02\x01" + MAC
    pseudo = frame[22:54] + len(body).to_bytes(4) + (58).to_bytes(4)
    assert internet_checksum(pseudo + body) == 0


@given(operation=st.sampled_from([REQUEST, REPLY]), sender_mac=macs, sender=v4, target_mac=macs, target=v4)
def test_arp_round_trip(operation: int, sender_mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> None:
    arp = Arp(operation, sender_mac, sender, target_mac, target)
    frame = encode_arp(arp, sender_mac, target_mac)
    assert decode_arp(frame) == arp
    assert decode_arp(frame + bytes(18)) == arp  # padded to Ethernet's least length


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        decode_arp(data)
    except FrameError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (12, b"\x86\xdd", "not an ARP frame"),
        (14, b"\x00\x06", "ARP for hardware 6 and protocol 0x0800 is not IPv4 over Ethernet"),
        (16, b"\x86\xdd", "ARP for hardware 1 and protocol 0x86dd is not IPv4 over Ethernet"),
        (20, b"\x00\x08", "ARP operation 8 is neither request nor reply"),
    ],
)
def test_refusals_say_why(at: int, value: bytes, message: str) -> None:
    frame = bytearray(announcements(VIP, MAC)[0])
    frame[at : at + len(value)] = value
    with pytest.raises(FrameError, match=message):
        decode_arp(bytes(frame))


def test_a_short_frame_says_how_short() -> None:
    with pytest.raises(FrameError, match="ARP frame of 20 bytes is cut short"):
        decode_arp(announcements(VIP, MAC)[0][:20])
