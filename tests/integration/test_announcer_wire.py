"""Raw sockets on a real veth pair."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from instruments.boards import run, until
from instruments.netns import inside
from netstack.announcer.frames import announcements, decode_arp
from netstack.announcer.wire import Wire
from netstack.core.address import pack

pytestmark = pytest.mark.root
NUMBERS = itertools.count(1)


@pytest.fixture
def pair() -> Iterator[tuple[str, Wire, Wire]]:
    """Both ends of a cable in a namespace of their own."""
    if os.geteuid():
        pytest.skip("needs root for namespaces and raw sockets")
    name = f"nstwire{os.getpid()}-{next(NUMBERS)}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "add", "a0", "type", "veth", "peer", "name", "b0")
        run("ip", "-n", name, "link", "set", "a0", "up")
        run("ip", "-n", name, "link", "set", "b0", "up")
        with inside(name):
            wires = Wire("a0"), Wire("b0")
        yield name, *wires
        for wire in wires:
            wire.close()
    finally:
        run("ip", "netns", "delete", name)


def test_a_beat_arrives_with_its_senders_mac(pair: tuple[str, Wire, Wire]) -> None:
    _, one, other = pair
    one.send_beat(other.mac, b"payload")
    ((source, payload),) = until(lambda: list(other.received_beats()))
    assert source == one.mac
    assert payload.startswith(b"payload")
    one.send_beat(b"\x02" * 6, b"for somebody else")
    one.send_beat(b"\xff" * 6, b"for all")
    assert [text[:7] for _, text in until(lambda: list(other.received_beats()))][-1] == b"for all"


def test_arp_is_read_apart_from_beats(pair: tuple[str, Wire, Wire]) -> None:
    _, one, other = pair
    vip = pack("192.168.86.18")
    for frame in announcements(vip, one.mac):
        one.send(frame)
    seen = until(lambda: [arp for arp in map(decode_arp, other.received_arp()) if arp.sender == vip])
    assert seen[0].gratuitous
    assert list(other.received_beats()) == []


def test_the_link_is_seen_and_a_link_that_is_down_swallows_frames(pair: tuple[str, Wire, Wire]) -> None:
    name, one, other = pair
    with inside(name):
        until(one.carrier)
    run("ip", "-n", name, "link", "set", "b0", "down")
    until(lambda: not one.carrier())
    assert not other.carrier()
    other.send_beat(one.mac, b"lost")
    run("ip", "-n", name, "link", "set", "b0", "up")
    until(one.carrier)
    until(other.carrier)
    list(other.received_beats())
    one.send_beat(other.mac, b"again")
    assert until(lambda: list(other.received_beats()))[0][1].startswith(b"again")


def test_news_of_links_wake_the_link_socket(pair: tuple[str, Wire, Wire]) -> None:
    name, one, _ = pair
    one.carrier()
    run("ip", "-n", name, "link", "set", "b0", "down")
    assert until(lambda: one.links.recv(4096))


def test_an_ipv6_address_has_its_group_joined_once_and_left(pair: tuple[str, Wire, Wire]) -> None:
    name, one, _ = pair
    address, group = pack("fd00::12:3456"), "ff02::1:ff12:3456"
    with inside(name):
        one.join_solicited_node(address)
        one.join_solicited_node(address)
    assert group in run("ip", "-n", name, "-6", "maddress", "show", "dev", "a0")
    one.leave_solicited_node(address)
    one.leave_solicited_node(address)
    assert group not in run("ip", "-n", name, "-6", "maddress", "show", "dev", "a0")


def test_an_ipv6_address_where_there_is_no_ipv6_stops_nobody(
    pair: tuple[str, Wire, Wire], caplog: pytest.LogCaptureFixture
) -> None:
    name, one, _ = pair
    run("ip", "-n", name, "link", "set", "a0", "mtu", "1200")  # below what IPv6 needs
    with inside(name):
        one.join_solicited_node(pack("fd00::12:3456"))
        assert "a0: nobody can ask for fd00::12:3456 here: " in caplog.text
        run("ip", "-n", name, "link", "set", "a0", "mtu", "1500")
        one.join_solicited_node(pack("fd00::12:3456"))
    assert "ff02::1:ff12:3456" in run("ip", "-n", name, "-6", "maddress", "show", "dev", "a0")


def test_a_missing_interface_is_an_error() -> None:
    with pytest.raises(OSError, match="interface"):
        Wire("nosuch0")
