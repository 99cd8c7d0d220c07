"""Strangers that speak for our addresses (RFC 5227, section 2.4)."""

from __future__ import annotations

import pytest

from netstack.announcer.conflict import Conflict, ConflictWatch
from netstack.announcer.frames import REPLY, REQUEST, Arp
from netstack.core.address import pack

VIP, OTHER = pack("192.168.86.18"), pack("192.168.86.50")
OURS, MEMBER, STRANGER = (bytes([2, 0, 0, 0, 0, number]) for number in range(3))


def see(watch: ConflictWatch, arp: Arp, now: float, *, owned: bool = True) -> Conflict | None:
    return watch.see(arp, {VIP}, {VIP} if owned else set(), {OURS, MEMBER}, now)


def claim(sender: bytes, mac: bytes, operation: int = REPLY) -> Arp:
    return Arp(operation, mac, sender, OURS, VIP)


@pytest.mark.parametrize("operation", [REQUEST, REPLY])
def test_a_stranger_with_our_address_is_a_conflict_and_the_owner_defends(operation: int) -> None:
    assert see(ConflictWatch(), claim(VIP, STRANGER, operation), 0.0) == Conflict(VIP, STRANGER, defend=True)
    assert see(ConflictWatch(), claim(VIP, STRANGER, operation), 0.0, owned=False) == Conflict(
        VIP, STRANGER, defend=False
    )


@pytest.mark.parametrize("arp", [claim(VIP, OURS), claim(VIP, MEMBER), claim(OTHER, STRANGER)])
def test_members_and_other_addresses_are_none(arp: Arp) -> None:
    watch = ConflictWatch()
    assert see(watch, arp, 0.0) is None
    assert watch.counts == {}


def test_it_defends_at_most_every_ten_seconds_however_often_it_is_provoked() -> None:
    watch = ConflictWatch()
    seen = [see(watch, claim(VIP, STRANGER), now / 10) for now in range(300)]
    assert [index for index, conflict in enumerate(seen) if conflict] == [0, 100, 200]
    assert watch.counts == {VIP: 300}
