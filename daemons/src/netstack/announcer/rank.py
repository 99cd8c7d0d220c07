"""Who should take an address that nobody holds: the node that holds fewest, then rendezvous hashing.

Every node computes this alone from its own view. Views may differ for a moment: that costs a vote (netstack.announcer.
elect), never a second owner.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from hashlib import sha256


@lru_cache(maxsize=4096)
def weight(address: bytes, node: str) -> bytes:
    """Rendezvous weight: lower comes first. It depends on the pair only, so a node that leaves moves nothing else."""
    return sha256(address + node.encode()).digest()


def plan(candidates: Mapping[bytes, Collection[str]], held: Mapping[str, int]) -> dict[bytes, list[str]]:
    """For each address its candidates, best first. Addresses are dealt out one after the other in address order, so
    that several that fall free at once spread over the nodes that remain."""
    counts = dict(held)
    orders: dict[bytes, list[str]] = {}
    for address in sorted(candidates):
        order = sorted(candidates[address], key=lambda node: (counts.get(node, 0), weight(address, node)))
        orders[address] = order
        if order:
            counts[order[0]] = counts.get(order[0], 0) + 1
    return orders
