"""Peers that are other objects (toServices) -> the selectors and ranges that these stand for. Pure.

A Service with a selector stands for the pods that it selects, ready or not; one without stands for the addresses of its
EndpointSlices, as ranges: a pod or node among them is not meant (identities.py), as with toCIDR.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from netstack.agent.identities import NAMESPACE
from netstack.agent.policy.rules import Block, Rule, Spec
from netstack.core.address import Prefix
from netstack.source.models import EndpointSlice, Service
from netstack.source.selectors import LabelSelector, Requirement


def resolve(
    specs: Iterable[Spec], services: tuple[Service, ...], slices: tuple[EndpointSlice, ...]
) -> tuple[Spec, ...]:
    """The same specs without `Peers.services`; those that had none are the very same."""

    def resolved(rule: Rule) -> Rule:
        if rule.peers is None or not _refers(rule):
            return rule
        found = [service for service in services if any(wanted.matches(service.meta) for wanted in rule.peers.services)]
        selectors = tuple(_pods(service) for service in found if service.selector)
        blocks = tuple(block for service in found if not service.selector for block in _addresses(service, slices))
        return replace(rule, peers=replace(rule.peers, services=(), selectors=selectors, blocks=blocks))

    return tuple(
        replace(spec, rules=tuple(map(resolved, spec.rules))) if any(map(_refers, spec.rules)) else spec
        for spec in specs
    )


def _refers(rule: Rule) -> bool:
    return rule.peers is not None and bool(rule.peers.services)


def _pods(service: Service) -> LabelSelector:
    wanted = {**service.selector, NAMESPACE: service.meta.namespace}
    return LabelSelector(tuple(Requirement(key, "In", (value,)) for key, value in sorted(wanted.items())))


def _addresses(service: Service, slices: tuple[EndpointSlice, ...]) -> Iterator[Block]:
    for item in slices:
        if (item.meta.namespace, item.service) == (service.meta.namespace, service.meta.name):
            yield from (Block(Prefix(address, 128)) for entry in item.endpoints for address in entry.addresses)
