"""Peers that are other objects (toServices, cidrGroupRef) -> the selectors and ranges that these stand for. Pure.

A Service with a selector stands for the pods that it selects, ready or not; one without stands for the addresses of its
EndpointSlices, as ranges: a pod or node among them is not meant (identities.py), as with toCIDR.

What is not there stands for nobody. A rule that denies somebody who cannot be told denies everybody (law 4): by the
name of what is not there, or by labels, which what could not be read may have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from netstack.agent.identities import NAMESPACE, Around
from netstack.agent.policy.rules import Action, Block, Groups, Peers, Rule, Spec
from netstack.core.address import Prefix
from netstack.core.ref import Ref
from netstack.source.models import CIDRGroup, EndpointSlice, Service
from netstack.source.selectors import LabelSelector


@dataclass(frozen=True, slots=True)
class Referred:
    """The objects that rules may name."""

    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    groups: tuple[CIDRGroup, ...] = ()
    unread: tuple[Ref, ...] = ()
    """Objects of which no version could be read."""


def resolve(specs: tuple[Spec, ...], objects: Referred) -> tuple[tuple[Spec, ...], list[str]]:
    """The same specs without references (those that had none are the very same), and what was not found."""
    problems: list[str] = []

    def resolved(rule: Rule) -> Rule:
        if rule.peers is None or not _refers(rule):
            return rule
        lacking = [f"there is no {name}" for name in _lacking(rule.peers, objects)]
        if rule.action is Action.DENY:
            lacking += [f"{ref} cannot be read, and may be meant" for ref in _unread(rule.peers, objects)]
        problems.extend(f"{rule.ref}: {reason}" for reason in lacking)
        if lacking and rule.action is Action.DENY:
            return replace(rule, peers=None)
        found = tuple(s for s in objects.services if any(wanted.matches(s.meta) for wanted in rule.peers.services))
        blocks = [block for service in found if not service.selector for block in _addresses(service, objects)]
        blocks += (block for wanted in rule.peers.groups for block in _ranges(wanted, objects))
        peers = replace(
            rule.peers,
            services=(),
            groups=(),
            selectors=tuple(_pods(service) for service in found if service.selector),
            blocks=(*rule.peers.blocks, *blocks),
        )
        return replace(rule, peers=peers)

    return tuple(
        replace(spec, rules=tuple(map(resolved, spec.rules))) if any(map(_refers, spec.rules)) else spec
        for spec in specs
    ), problems


def _refers(rule: Rule) -> bool:
    return rule.peers is not None and bool(rule.peers.services or rule.peers.groups)


def _lacking(peers: Peers, objects: Referred) -> list[str]:
    """The objects that are named and are not there. A selector that selects nothing lacks nothing."""
    services = (item for item in peers.services if item.name)
    groups = (item for item in peers.groups if item.name)
    return [
        *(f"Service {s.namespace}/{s.name}" for s in services if not any(s.matches(o.meta) for o in objects.services)),
        *(f"CiliumCIDRGroup {g.name}" for g in groups if not any(g.matches(o.meta) for o in objects.groups)),
    ]


def _unread(peers: Peers, objects: Referred) -> Iterator[Ref]:
    """What a selector may select, for all that is known."""
    namespaces = {item.namespace for item in peers.services if not item.name}
    by_labels = any(not item.name for item in peers.groups)
    for ref in objects.unread:
        if (ref.kind == "Service" and namespaces & {"", ref.namespace}) or (
            ref.kind == "CiliumCIDRGroup" and by_labels
        ):
            yield ref


def _pods(service: Service) -> LabelSelector:
    return LabelSelector.of({**service.selector, NAMESPACE: service.meta.namespace})


def _addresses(service: Service, objects: Referred) -> Iterator[Block]:
    for item in objects.slices:
        if (item.meta.namespace, item.service) == (service.meta.namespace, service.meta.name):
            yield from (Block(Prefix(address, 128)) for entry in item.endpoints for address in entry.addresses)


def _ranges(wanted: Groups, objects: Referred) -> Iterator[Block]:
    """Looked up, not compared with one another: a group and what is left out of it may both be long lists."""
    excluded = Around(wanted.excluded)
    for group in (group for group in objects.groups if wanted.matches(group.meta)):
        around, holes = Around(group.prefixes), defaultdict[Prefix, list[Prefix]](list)
        for hole in wanted.excluded:
            for prefix in around.every(hole):
                holes[prefix].append(hole)
        yield from (Block(prefix, tuple(holes[prefix])) for prefix in group.prefixes if excluded(prefix) is None)
