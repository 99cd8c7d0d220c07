"""The announcer's two maps. It is their only writer; the programs at the uplink read them for every ARP request.

`vips`: every allocated address has an entry for each interface on every node; its deadline is 0 where another node
owns it, and then requests are dropped, so that no stray route or address of this node ever answers. `node_alive`:
node address -> until when the node is believed alive.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from netstack.core.address import pack
from netstack.kernel.bpf import Map
from netstack.kernel.layout import AddressKey, Instant, Vip, VipKey

NS = 1_000_000_000


class Tables:
    """OSError (BpfError) if the loader has not pinned the maps."""

    def __init__(self, bpffs: Path, nodes: Mapping[str, str]) -> None:
        """`nodes`: name -> LAN address of every node, this one included."""
        self._vips = Map.open(bpffs / "maps" / "vips")
        self._alive = Map.open(bpffs / "maps" / "node_alive")
        self._nodes = {name: AddressKey(pack(address)).pack() for name, address in nodes.items()}

    def clear(self) -> None:
        """Answer for nothing. To be done before the first beat: it tells others that this node holds nothing."""
        for key, value in list(self._vips.items()):
            self._vips.put(key, Vip(0, 0, Vip.unpack(value).mac).pack())
        for key, _ in list(self._alive.items()):
            if key not in self._nodes.values():
                self._alive.delete(key)

    def set_deadline(self, address: bytes, index: int, mac: bytes, deadline_s: float, term: int) -> None:
        self._vips.put(VipKey(address, index).pack(), Vip(int(deadline_s * NS), term & 0xFFFFFFFF, mac).pack())

    def allocated(self, addresses: Collection[bytes], indexes: Mapping[int, bytes]) -> None:
        """Have an entry for each address on each interface (index -> MAC), new ones not owned; delete all others."""
        wanted = {VipKey(address, index).pack(): mac for address in addresses for index, mac in indexes.items()}
        present = {key for key, _ in self._vips.items()}
        for key in sorted(wanted.keys() - present):
            self._vips.put(key, Vip(0, 0, wanted[key]).pack())
        for key in sorted(present - wanted.keys()):
            self._vips.delete(key)

    def set_alive(self, node: str, until_s: float) -> None:
        self._alive.put(self._nodes[node], Instant(int(until_s * NS)).pack())
