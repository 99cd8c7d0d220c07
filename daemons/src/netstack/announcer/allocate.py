"""Which service gets which addresses: MetalLB's rules, made deterministic.

A service that carries an address (in its status) keeps it as long as it is allowed to have it, and such services come
first, so nobody is robbed by an order of events. Then come those that name their addresses, then the rest; each group
by age and name. Pools are tried in name order and addresses in range order, so every node that sees the same objects
gives the same answer. Every refusal names the object, the field and the obstacle; a refused wish does not take away
what the service already has: where a wish fails because of a later service, all is worked out again without it.

Annotations are read with both of MetalLB's prefixes, `metallb.io/` and `metallb.universe.tf/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from netstack.announcer import pools as pool_rules
from netstack.core.address import is_v4, pack, unpack
from netstack.core.errors import BadObject
from netstack.core.ref import Ref
from netstack.source.models import IPAddressPool, Service

PREFIXES = ("metallb.io/", "metallb.universe.tf/")
Families = tuple[bool, ...]
"""True = IPv4, in order of preference."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a service has. `addresses`: one or two, of different families, from one pool."""

    addresses: tuple[bytes, ...]
    pool: str


@dataclass(frozen=True, slots=True)
class Allocation:
    """The whole answer. A service may be both assigned and refused: it keeps what it had, and its new wish is
    denied."""

    assigned: Mapping[Ref, Assigned]
    refused: Mapping[Ref, BadObject]
    pools: tuple[IPAddressPool, ...]
    refused_pools: tuple[BadObject, ...]

    def used(self, pool: IPAddressPool, v4: bool) -> int:
        """How many addresses of one family are assigned from the pool."""
        return len({a for assigned in self.assigned.values() for a in assigned.addresses if is_v4(a) == v4
                    and assigned.pool == pool.meta.name})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What a service asks for."""

    addresses: tuple[bytes, ...]
    pool: str
    sharing_key: str
    field: str
    """Where it asks, for messages."""


def annotation(service: Service, name: str) -> tuple[str, str]:
    """(value, field path) of MetalLB's annotation `name`; ("", "") if absent. BadObject if its two forms disagree."""
    annotations = service.meta.annotations
    found = {prefix: annotations[prefix + name] for prefix in PREFIXES if prefix + name in annotations}
    if len(set(found.values())) > 1:
        old, new = PREFIXES[1] + name, PREFIXES[0] + name
        raise BadObject(service.meta.ref, f"metadata.annotations.{new}", f"says something else than {old}")
    for prefix, value in found.items():
        return value.strip(), f"metadata.annotations.{prefix}{name}"
    return "", ""


def sharing_key(service: Service) -> str:
    """allow-shared-ip; "" if absent."""
    annotations = service.meta.annotations
    return next((annotations[p + "allow-shared-ip"] for p in PREFIXES if p + "allow-shared-ip" in annotations), "")


def wish_of(service: Service) -> Wish:
    """BadObject if the service contradicts itself."""
    ref = service.meta.ref
    text, where = annotation(service, "loadBalancerIPs")
    if text and service.requested_ip:
        raise BadObject(ref, "spec.loadBalancerIP", f"must not be set together with {where}")
    if service.requested_ip:
        text, where = service.requested_ip, "spec.loadBalancerIP"
    addresses = tuple(_parse_address(ref, where, part.strip()) for part in text.split(",")) if text else ()
    if len({is_v4(address) for address in addresses}) != len(addresses):
        raise BadObject(ref, where, f"{text} asks for two addresses of one family")
    for address in addresses:
        if (served := _served(service)) and is_v4(address) not in served:
            raise BadObject(ref, where, f"{unpack(address)} is of another family than spec.clusterIPs")
    pool, pool_field = annotation(service, "address-pool")
    annotation(service, "allow-shared-ip")
    return Wish(addresses, pool, sharing_key(service), where or pool_field or "spec.type")


def _parse_address(ref: Ref, where: str, text: str) -> bytes:
    try:
        return pack(text)
    except ValueError as error:
        raise BadObject(ref, where, f"{text!r} is not an IP address") from error


def allocate(
    pools: Sequence[IPAddressPool],
    services: Sequence[Service],
    namespaces: Mapping[str, Mapping[str, str]],
    load_balancer_class: str = "",
) -> Allocation:
    """`namespaces`: name -> labels. Services of other types or of another loadBalancerClass are not looked at."""
    ours = [s for s in services if s.type == "LoadBalancer" and s.load_balancer_class == load_balancer_class]
    carried = [address for service in ours for address in service.load_balancer_ips]
    kept, refused_pools = pool_rules.in_force(pools, carried)
    denied: dict[Ref, BadObject] = {}
    while True:
        work = _Work(kept, namespaces, refused=dict(denied))
        for service in sorted(ours, key=_age):
            work.read(service)
        for service in sorted(ours, key=_age):
            work.keep(service)
        for service in sorted(ours, key=lambda s: (not work.names_addresses(s), _age(s))):
            work.give(service)
        lost = {ref: work.refused[ref] for ref in work.moving - work.assigned.keys()}
        if not lost:
            break
        denied |= lost
    settled = [replace(s, load_balancer_ips=work.has(s)) for s in ours] if denied else ours
    if settled != ours:  # what was denied may be free by now
        return allocate(pools, settled, namespaces, load_balancer_class)
    return Allocation(dict(sorted(work.assigned.items())), dict(sorted(work.refused.items())), kept, refused_pools)


def _age(service: Service) -> tuple[str, Ref]:
    return service.meta.created, service.meta.ref


def _served(service: Service) -> frozenset[bool]:
    """The families in which it has endpoints, as far as it tells; none if it has no cluster IP."""
    if not service.cluster_ips:
        return frozenset()
    return frozenset(map(is_v4, service.cluster_ips)) | {family == "IPv4" for family in service.ip_families}


def _families(service: Service) -> list[Families]:
    """Acceptable sets of families, best first."""
    named = tuple(family == "IPv4" for family in service.ip_families) or tuple(map(is_v4, service.cluster_ips))
    first = named[0] if named else True
    match service.ip_family_policy:
        case "RequireDualStack":
            return [(first, not first)]
        case "PreferDualStack" if len(_served(service)) != 1:
            return [(first, not first), (first,), (not first,)]
        case _:
            return [(first,)]


@dataclass(slots=True)
class _Work:
    """The state of one allocation."""

    pools: tuple[IPAddressPool, ...]
    namespaces: Mapping[str, Mapping[str, str]]
    wishes: dict[Ref, Wish] = field(default_factory=dict)
    assigned: dict[Ref, Assigned] = field(default_factory=dict)
    refused: dict[Ref, BadObject] = field(default_factory=dict)
    holders: defaultdict[bytes, list[Service]] = field(default_factory=lambda: defaultdict(list))
    moving: set[Ref] = field(default_factory=set)
    """Services that left what they had for the addresses that they name."""

    def read(self, service: Service) -> None:
        try:
            self.wishes[service.meta.ref] = wish_of(service)
        except BadObject as error:
            self.refused[service.meta.ref] = error

    def names_addresses(self, service: Service) -> bool:
        wish = self.wishes.get(service.meta.ref)
        return wish is not None and bool(wish.addresses)

    def has(self, service: Service) -> tuple[bytes, ...]:
        assigned = self.assigned.get(service.meta.ref)
        return assigned.addresses if assigned else ()

    def keep(self, service: Service) -> None:
        """Leave the service what it carries, unless that is no longer its to have."""
        ref, carried = service.meta.ref, service.load_balancer_ips
        if not carried or len({is_v4(address) for address in carried}) != len(carried):
            return
        if next(self._obstacles(service, Wish((), "", sharing_key(service), "spec.type"), carried), None):
            return
        wish = self.wishes.get(ref)
        if wish is not None and wish.addresses and ref not in self.refused:
            blocked = next(self._obstacles(service, wish, wish.addresses), None)
            if blocked is not None:
                self.refused[ref] = blocked
            elif set(wish.addresses) != set(carried):
                self.moving.add(ref)
                return
        self._assign(service, carried)

    def give(self, service: Service) -> None:
        """Find addresses for a service that has none, or not those that it should have."""
        ref = service.meta.ref
        wish, held = self.wishes.get(ref), self.assigned.get(ref)
        if wish is None or (held and (wish.addresses or self._suits(service, wish, held))):
            return
        try:
            if wish.addresses:
                for obstacle in self._obstacles(service, wish, wish.addresses):
                    raise obstacle
                self._assign(service, wish.addresses)
            else:
                chosen = self._choose(service, wish)
                if held:
                    self._release(service, held)
                self._assign(service, chosen)
        except BadObject as error:
            self.refused[ref] = error

    def _suits(self, service: Service, wish: Wish, held: Assigned) -> bool:
        """Whether what it has is of the pool and the families that it asks for."""
        pool = wish.pool or held.pool
        return held.pool == pool and tuple(map(is_v4, held.addresses)) in self._shapes(service, held.addresses)

    def _shapes(self, service: Service, carried: tuple[bytes, ...]) -> list[Families]:
        """Family sets that a service may keep: a lone one of Prefer only where its pool has no second family."""
        shapes = _families(service)
        if service.ip_family_policy == "PreferDualStack" and len(carried) == 1:
            pool = self._pool_of(carried[0])
            if pool is not None and all(pool_rules.size(pool, v4) for v4 in (True, False)):
                return shapes[:1]
        return shapes

    def _choose(self, service: Service, wish: Wish) -> tuple[bytes, ...]:
        carried, held = service.load_balancer_ips, self.assigned.get(service.meta.ref)
        pools = self._allowed_pools(service, wish)
        if held and not wish.pool:  # what it has is added to; other pools, only where its own has nothing for it
            if service.ip_family_policy == "PreferDualStack" and len(held.addresses) == 1:
                pools = [pool for pool in pools if pool.meta.name == held.pool]
            pools = sorted(pools, key=lambda pool: pool.meta.name != held.pool)
        for families in _families(service):
            for pool in pools:
                chosen = [self._first(pool, v4, service, wish.sharing_key, carried) for v4 in families]
                if all(chosen):
                    return tuple(address for address in chosen if address is not None)
        words = " and ".join("IPv4" if v4 else "IPv6" for v4 in _families(service)[0])
        tried = ", ".join(pool.meta.name for pool in pools)
        raise BadObject(service.meta.ref, wish.field, f"no free {words} address in {tried}")

    def _allowed_pools(self, service: Service, wish: Wish) -> list[IPAddressPool]:
        ref, labels = service.meta.ref, self.namespaces.get(service.meta.namespace, {})
        if not wish.pool:
            pools = pool_rules.automatic(self.pools, service, labels)
            if not pools:
                raise BadObject(ref, wish.field, "no IPAddressPool gives addresses to this service by itself")
            return pools
        for pool in self.pools:
            if pool.meta.name == wish.pool:
                if not pool_rules.admits(pool, service, labels):
                    raise BadObject(ref, wish.field, f"{pool.meta.ref} does not serve it: spec.serviceAllocation")
                return [pool]
        raise BadObject(ref, wish.field, f"there is no IPAddressPool {wish.pool} in force")

    def _first(
        self, pool: IPAddressPool, v4: bool, service: Service, key: str, carried: tuple[bytes, ...]
    ) -> bytes | None:
        """The first address of the pool that the service can have, one that it carries before all others."""
        own = [address for address in carried if is_v4(address) == v4 and pool_rules.contains(pool, address)]
        tried = chain(own, pool_rules.candidates(pool, v4))
        return next((address for address in tried if self._usable(address, service, key)), None)

    def _usable(self, address: bytes, service: Service, key: str) -> bool:
        return service in self.holders[address] or next(self._sharing_obstacles(address, service, key), None) is None

    def _pool_of(self, address: bytes) -> IPAddressPool | None:
        return next((pool for pool in self.pools if pool_rules.contains(pool, address)), None)

    def _obstacles(self, service: Service, wish: Wish, addresses: tuple[bytes, ...]) -> Iterator[BadObject]:
        """Why the service cannot have exactly these addresses."""
        ref, labels = service.meta.ref, self.namespaces.get(service.meta.namespace, {})
        for address in addresses:
            pool = self._pool_of(address)
            if pool is None:
                yield BadObject(ref, wish.field, f"{unpack(address)} is in no IPAddressPool")
            elif wish.pool and pool.meta.name != wish.pool:
                reason = f"{unpack(address)} is of pool {pool.meta.name}, but the service asks for pool {wish.pool}"
                yield BadObject(ref, wish.field, reason)
            elif not pool_rules.admits(pool, service, labels):
                yield BadObject(ref, wish.field, f"{pool.meta.ref} does not serve it: spec.serviceAllocation")
            else:
                for reason in self._sharing_obstacles(address, service, wish.sharing_key):
                    yield BadObject(ref, wish.field, reason)
        if len({pool.meta.name for pool in map(self._pool_of, addresses) if pool}) > 1:
            yield BadObject(ref, wish.field, "its two addresses are of different pools")

    def _sharing_obstacles(self, address: bytes, service: Service, key: str) -> Iterator[str]:
        """Why the service cannot share an address with each of its holders; nothing if nobody holds it."""
        for holder in self.holders[address]:
            held_by = f"{unpack(address)} is held by {holder.meta.ref}"
            ports = {(port.protocol, port.port) for port in holder.ports}
            clash = sorted((p.protocol, p.port) for p in service.ports if (p.protocol, p.port) in ports)
            if not key or sharing_key(holder) != key:
                yield f"{held_by}, and the two do not name one key in allow-shared-ip"
            elif clash:
                yield f"{held_by}, which has {clash[0][0]} port {clash[0][1]} too"
            elif _backends(holder) != _backends(service):
                yield f"{held_by}, and with externalTrafficPolicy Local both need one selector"

    def _assign(self, service: Service, addresses: tuple[bytes, ...]) -> None:
        (pool,) = [pool for pool in self.pools if pool_rules.contains(pool, addresses[0])]  # pools do not overlap
        self.assigned[service.meta.ref] = Assigned(addresses, pool.meta.name)
        for address in addresses:
            self.holders[address].append(service)

    def _release(self, service: Service, held: Assigned) -> None:
        for address in held.addresses:
            self.holders[address].remove(service)


def _backends(service: Service) -> tuple[tuple[str, str], ...]:
    """Services that share an address must lead each node's traffic to the same pods if they are Local."""
    return tuple(sorted(service.selector.items())) if service.external_local else ()
