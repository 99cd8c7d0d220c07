"""Nodes -> the kernel routes and rules between them.

Pods of another node are reached through that node's address: one route a PodCIDR, no tunnel, all nodes on one link.
The cluster's ranges as a whole (pods, services) are unreachable but for these routes and the /32 of each local pod:
what is sent to an address that nobody has never leaves by the default route. Packets with the DNS proxy's mark are
delivered here whatever their address (table 1053); IPv6 ones only in a cluster with IPv6 ranges, for there are nodes on
which IPv6 is switched off, and which refuse its routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from netstack.core.address import Prefix, is_v4, unpack
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


def contradictions(
    nodes: Iterable[Node], node: str, addresses: Iterable[bytes], pod_cidrs: Iterable[Prefix]
) -> Iterator[str]:
    """Where Node objects say otherwise of this node than its settings do: by them the others send it what is for its
    pods."""
    own, ranges = tuple(addresses), tuple(pod_cidrs)
    gives = f"but this node gives addresses of {', '.join(map(str, ranges))} to its pods"
    for item in nodes:
        who = f"Node {item.meta.name}"
        if item.meta.name == node:
            for v4 in (True, False):
                known, mine = _first(item.addresses, v4=v4), _first(own, v4=v4)
                if known is not None and mine is not None and known != mine:
                    yield f"{who} has the address {unpack(known)}, but this node goes by {unpack(mine)}"
            if item.pod_cidrs and not all(any(cidr.covers(part) for cidr in item.pod_cidrs) for part in ranges):
                yield f"{who} has the pod range {', '.join(map(str, item.pod_cidrs))}, {gives}"
            continue
        for address in sorted(set(item.addresses) & set(own)):
            yield f"{who} has this node's address {unpack(address)}, but this node is called {node}"
        for cidr in item.pod_cidrs:
            if any(cidr.covers(part) or part.covers(cidr) for part in ranges):
                yield f"{who} has the pod range {cidr}, {gives}"


def _first(addresses: Iterable[bytes], *, v4: bool) -> bytes | None:
    return next((address for address in addresses if is_v4(address) == v4), None)


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
            via = _first(other.addresses, v4=is_v4(cidr.address))
            if via is not None:
                wanted.add(Wanted(cidr, "uplink", via))
    return frozenset(wanted)
