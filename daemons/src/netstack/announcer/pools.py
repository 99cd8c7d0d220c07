"""Which IPAddressPools are in force, and who may draw from them.

Two pools must not overlap: then the one that more services hold addresses of stays, then the older one, then the first
by name, and the other is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from netstack.core.address import V4_MAPPED, is_v4
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.models import IPAddressPool, Service

LAST = 2**31
"""Priority of a pool that gives none: behind all that do."""


def in_force(
    pools: Sequence[IPAddressPool], held: Collection[bytes]
) -> tuple[tuple[IPAddressPool, ...], tuple[BadObject, ...]]:
    """Pools that may be drawn from, in name order, and the refusals of the others. `held`: addresses of services."""

    def precedence(pool: IPAddressPool) -> tuple[int, str, Ref]:
        return -sum(contains(pool, address) for address in held), pool.meta.created, pool.meta.ref

    kept: list[IPAddressPool] = []
    refused: list[BadObject] = []
    for pool in sorted(pools, key=precedence):
        clash = next(_clashes(pool, kept), None)
        if clash is None:
            kept.append(pool)
        else:
            refused.append(clash)
    return tuple(sorted(kept, key=lambda pool: pool.meta.ref)), tuple(sorted(refused, key=str))


def _clashes(pool: IPAddressPool, others: Sequence[IPAddressPool]) -> Iterator[BadObject]:
    for index, new in enumerate(pool.ranges):
        for other in others:
            for old in other.ranges:
                if old.overlaps(new):
                    field = f"spec.addresses[{index}]"
                    yield BadObject(pool.meta.ref, field, f"{new} overlaps {old} of {other.meta.ref}, which stays")


def contains(pool: IPAddressPool, address: bytes) -> bool:
    return any(address in part for part in pool.ranges)


def candidates(pool: IPAddressPool, v4: bool) -> Iterator[bytes]:
    """Addresses of one family in the order in which they are given out."""
    for part in pool.ranges:
        if is_v4(part.first) != v4:
            continue
        for address in part:
            if not (pool.avoid_buggy_ips and v4 and address[15] in (0, 255)):
                yield address


def size(pool: IPAddressPool, v4: bool) -> int:
    """How many addresses of one family the pool can give out."""
    total = 0
    for part in pool.ranges:
        if is_v4(part.first) != v4:
            continue
        first, last = int.from_bytes(part.first), int.from_bytes(part.last)
        total += last - first + 1
        if pool.avoid_buggy_ips and v4:
            base = int.from_bytes(V4_MAPPED) << 32
            total -= sum(_multiples(first - base - offset, last - base - offset) for offset in (0, 255))
    return total


def _multiples(first: int, last: int) -> int:
    """How many multiples of 256 lie in [first, last]."""
    return last // 256 - (first - 1) // 256


def admits(pool: IPAddressPool, service: Service, namespace_labels: Mapping[str, str]) -> bool:
    """serviceAllocation: the namespace part and the service part must both hold; an empty part always does."""
    rules = pool.allocation
    if rules is None:
        return True
    if rules.namespaces or rules.namespace_selectors:
        named = service.meta.namespace in rules.namespaces
        if not named and not any(selector.matches(namespace_labels) for selector in rules.namespace_selectors):
            return False
    if rules.service_selectors:
        return any(selector.matches(service.meta.labels) for selector in rules.service_selectors)
    return True


def automatic(
    pools: Sequence[IPAddressPool], service: Service, namespace_labels: Mapping[str, str]
) -> list[IPAddressPool]:
    """Pools for a service that asks for none, in the order in which they are tried: those reserved for it by
    priority, then the open ones, each in name order."""
    open_to_it = [pool for pool in pools if pool.auto_assign and admits(pool, service, namespace_labels)]

    def order(pool: IPAddressPool) -> tuple[bool, int, Ref]:
        priority = (pool.allocation.priority or LAST) if pool.allocation else LAST
        return pool.allocation is None, priority, pool.meta.ref

    return sorted(open_to_it, key=order)
