"""Somebody else on the LAN speaks for one of our addresses: address conflict detection, RFC 5227, section 2.4.

An ARP packet whose sender address is ours and whose sender MAC belongs to no node of the cluster is a conflict. The
owner defends once and then at most every DEFEND_S (section 2.4 (c)): two machines that answer each other's claims at
full speed would be worse than the conflict. The address is not given up: that would hand it to whoever speaks first.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from netstack.announcer.frames import Arp

DEFEND_S = 10.0
"""DEFEND_INTERVAL, RFC 5227, section 1.1."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Worth a warning. `defend`: announce the address once."""

    address: bytes
    mac: bytes
    defend: bool


class ConflictWatch:
    """The conflicts of one interface."""

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}
        self._reported_at: dict[bytes, float] = {}

    def see(
        self, arp: Arp, addresses: Collection[bytes], owned: Collection[bytes], members: Collection[bytes], now: float
    ) -> Conflict | None:
        """`addresses`: every allocated one; `owned`: ours now; `members`: the nodes' MACs. A conflict at most every
        DEFEND_S an address; those in between are only counted."""
        if arp.sender not in addresses or arp.sender_mac in members:
            return None
        self.counts[arp.sender] = self.counts.get(arp.sender, 0) + 1
        if now - self._reported_at.get(arp.sender, float("-inf")) < DEFEND_S:
            return None
        self._reported_at[arp.sender] = now
        return Conflict(arp.sender, arp.sender_mac, arp.sender in owned)
