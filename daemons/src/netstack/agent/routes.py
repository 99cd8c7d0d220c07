"""Nodes -> the kernel routes and rules between them.

Pods of another node are reached through that node's address: one route a PodCIDR, no tunnel, all nodes on one link.
The cluster's ranges as a whole (pods, services) are unreachable but for these routes and the /32 of each local pod:
what is sent to an address that nobody has never leaves by the default route. Packets with the DNS proxy's mark are
delivered here whatever their address (table 1053); IPv6 ones only in a cluster with IPv6 ranges, for there are nodes on
which IPv6 is switched off, and which refuse its routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from netstack.core.address import Prefix, is_v4
from netstack.kernel import layout
from netstack.source.models import Node

MAIN = 254
PROXY_TABLE = 1053
PROXY_MASK = 0xFF000000


@dataclass(frozen=True, slots=True, order=True)
class Wanted:
    """One route. `via` b"" = on the link of `device`; `device` is "uplink", "lo" (deliver here) or "" (refuse)."""

    destination: Prefix
    device: str
    via: bytes = b""
    table: int = MAIN


@dataclass(frozen=True, slots=True, order=True)
class WantedRule:
    priority: int
    mark: int
    mask: int
    table: int


PROXY_RULE = WantedRule(PROXY_TABLE, layout.PROXY_MARK, PROXY_MASK, PROXY_TABLE)
PROXY_ROUTE = Wanted(Prefix.parse("0.0.0.0/0"), "lo", table=PROXY_TABLE)
PROXY_ROUTE_V6 = Wanted(Prefix.parse("::/0"), "lo", table=PROXY_TABLE)


def compile_routes(nodes: Iterable[Node], node: str, ranges: Iterable[Prefix]) -> frozenset[Wanted]:
    """`node`: this one's name; `ranges`: the cluster's own. No route where a node has no address of the family."""
    ranges = tuple(ranges)
    wanted = {PROXY_ROUTE, *(Wanted(range_, "") for range_ in ranges)}
    if not all(is_v4(range_.address) for range_ in ranges):
        wanted.add(PROXY_ROUTE_V6)
    for other in nodes:
        if other.meta.name == node:
            continue
        for cidr in other.pod_cidrs:
            via = next((address for address in other.addresses if is_v4(address) == is_v4(cidr.address)), None)
            if via is not None:
                wanted.add(Wanted(cidr, "uplink", via))
    return frozenset(wanted)
