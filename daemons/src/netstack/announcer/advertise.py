"""Which nodes may announce an assigned address, on which interfaces, and why no other may.

MetalLB's rules: an address is announced only if an L2Advertisement selects its pool; several advertisements add up; a
node with NetworkUnavailable or the label node.kubernetes.io/exclude-from-external-load-balancers announces nothing;
with externalTrafficPolicy Local a node needs a ready endpoint of the service. One difference: a service of policy
Cluster without any ready endpoint stays announced (its clients get a refusal at once instead of an address that
vanishes).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from netstack.announcer.allocate import Allocation, sharing_key
from netstack.core.ref import Ref
from netstack.source.models import EndpointSlice, IPAddressPool, L2Advertisement, Node, Service

EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
Interfaces = frozenset[str]
"""Names; empty = all."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """One address: the services behind it, and the nodes that may announce it with the interfaces that each may use."""

    services: tuple[Ref, ...]
    nodes: Mapping[str, Interfaces]


@dataclass(frozen=True, slots=True)
class Announcements:
    """`silent`: assigned services that nobody announces -> why."""

    addresses: Mapping[bytes, Announcement]
    silent: Mapping[Ref, str]

    def eligible(self, interface: str) -> dict[bytes, frozenset[str]]:
        """Address -> nodes that may announce it on `interface` (a name means the same LAN on every node)."""
        return {
            address: frozenset(node for node, allowed in item.nodes.items() if not allowed or interface in allowed)
            for address, item in self.addresses.items()
        }


def advertise(
    allocation: Allocation,
    advertisements: Sequence[L2Advertisement],
    services: Sequence[Service],
    slices: Sequence[EndpointSlice],
    nodes: Sequence[Node],
    members: Collection[str],
    *,
    ignore_exclude_label: bool = False,
) -> Announcements:
    """`members`: every node with an announcer. One without a Node object has no labels and is taken to be well."""
    objects = {node.meta.name: node for node in nodes}
    fit = {
        name: node.meta.labels if node else {}
        for name in sorted(members)
        if (node := objects.get(name)) is None or _fit(node, ignore_exclude_label)
    }
    pools = {pool.meta.name: pool for pool in allocation.pools}
    holders: defaultdict[bytes, list[tuple[Ref, dict[str, Interfaces]]]] = defaultdict(list)
    silent: dict[Ref, str] = {}
    by_ref = {service.meta.ref: service for service in services}
    for ref, assigned in allocation.assigned.items():
        chosen = _may_announce(by_ref[ref], pools[assigned.pool], advertisements, slices, fit)
        if isinstance(chosen, str):
            silent[ref] = chosen
            continue
        for address in assigned.addresses:
            holders[address].append((ref, chosen))
    addresses = {}
    for address, sharers in sorted(holders.items()):
        nodes_of_all = _common([chosen for _, chosen in sharers])
        refs = tuple(ref for ref, _ in sharers)
        if not nodes_of_all:
            others = " and ".join(map(str, refs))
            silent |= dict.fromkeys(refs, f"{others} share the address, but no node may announce both")
        addresses[address] = Announcement(refs, nodes_of_all)
    return Announcements(addresses, dict(sorted(silent.items())))


def _fit(node: Node, ignore_exclude_label: bool) -> bool:
    return not node.network_unavailable and (ignore_exclude_label or EXCLUDE_LABEL not in node.meta.labels)


def _may_announce(
    service: Service,
    pool: IPAddressPool,
    advertisements: Sequence[L2Advertisement],
    slices: Sequence[EndpointSlice],
    fit: Mapping[str, Mapping[str, str]],
) -> dict[str, Interfaces] | str:
    """Nodes and their interfaces, or why there is none."""
    selecting = [ad for ad in advertisements if _selects_pool(ad, pool)]
    if not selecting:
        return f"no L2Advertisement selects {pool.meta.ref}"
    shared = bool(sharing_key(service))
    matching = [ad for ad in selecting if _selects_service(ad, service, shared=shared)]
    if not matching:
        names = ", ".join(ad.meta.name for ad in selecting)
        if shared:
            return f"spec.serviceSelectors of L2Advertisement {names} do not go with the annotation allow-shared-ip"
        return f"spec.serviceSelectors of L2Advertisement {names} do not select it"
    allowed: dict[str, Interfaces] = {}
    for name, labels in fit.items():
        ads = [ad for ad in matching if not ad.node_selectors or any(s.matches(labels) for s in ad.node_selectors)]
        if ads:
            everywhere = any(not ad.interfaces for ad in ads)
            allowed[name] = frozenset() if everywhere else frozenset(i for ad in ads for i in ad.interfaces)
    if not allowed:
        names = ", ".join(ad.meta.name for ad in matching)
        return f"no node fit to announce is selected by L2Advertisement {names}"
    if service.external_local:
        ready = _nodes_with_endpoints(service, slices)
        allowed = {name: interfaces for name, interfaces in allowed.items() if name in ready}
        if not allowed:
            return "spec.externalTrafficPolicy is Local and no node that may announce it has a ready endpoint"
    return allowed


def _selects_pool(ad: L2Advertisement, pool: IPAddressPool) -> bool:
    if not ad.pools and not ad.pool_selectors:
        return True
    return pool.meta.name in ad.pools or any(selector.matches(pool.meta.labels) for selector in ad.pool_selectors)


def _selects_service(ad: L2Advertisement, service: Service, *, shared: bool) -> bool:
    if not ad.service_selectors:
        return True
    return not shared and any(selector.matches(service.meta.labels) for selector in ad.service_selectors)


def _nodes_with_endpoints(service: Service, slices: Sequence[EndpointSlice]) -> set[str]:
    return {
        endpoint.node
        for piece in slices
        if piece.meta.namespace == service.meta.namespace and piece.service == service.meta.name
        for endpoint in piece.endpoints
        if endpoint.ready or (endpoint.serving and endpoint.terminating)
    }


def _common(choices: list[dict[str, Interfaces]]) -> dict[str, Interfaces]:
    """Nodes and interfaces that every sharer may use."""
    common = choices[0]
    for other in choices[1:]:
        both = {name: _meet(common[name], other[name]) for name in common if name in other}
        common = {name: interfaces for name, interfaces in both.items() if interfaces is not None}
    return common


def _meet(one: Interfaces, other: Interfaces) -> Interfaces | None:
    """Interfaces in both; None if there is none."""
    if not one or not other:
        return one | other
    return (one & other) or None
