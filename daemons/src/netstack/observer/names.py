"""Numbers -> names. Pure: what the agent and the DNS proxy answer goes in, and is remembered while it may be asked.

Endpoint and rule numbers are never given to something else, so what was known of them stays true after they are gone:
an event can be named after its pod has ended. Addresses are given again; theirs are the names of now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from netstack.kernel import layout

ENTITIES = {
    layout.IDENTITY_HOST: "host",
    layout.IDENTITY_WORLD: "world",
    layout.IDENTITY_UNMANAGED: "unmanaged",
    layout.IDENTITY_INIT: "init",
    layout.IDENTITY_REMOTE_NODE: "remote-node",
    layout.IDENTITY_KUBE_APISERVER: "kube-apiserver",
    layout.IDENTITY_INGRESS: "ingress",
}
REMEMBERED = 4096
"""Endpoints, and rules, that are remembered when they are gone."""
DNS_LIFE_S = 30.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod of this node. `policies` enforce something on it, those `on_trial` say what they would. `denies`: by
    direction, those of both that deny what no rule allows."""

    pod: str
    address: str
    policies: tuple[str, ...] = ()
    on_trial: tuple[str, ...] = ()
    denies: Mapping[str, Collection[str]] = field(default_factory=dict)


def kind(identity: int) -> str:
    """What policies call whoever has this number: an entity, or `pod`."""
    if identity in ENTITIES:
        return ENTITIES[identity]
    if layout.IDENTITY_NODES <= identity < layout.IDENTITY_NODES_END:
        return "remote-node"
    if layout.IDENTITY_NODES_END <= identity < layout.IDENTITY_PODS:  # parts of pod ranges: agent.identities
        return "unmanaged"
    return "pod" if layout.IDENTITY_PODS <= identity < layout.IDENTITY_PODS_END else "world"


class Names:
    def __init__(self) -> None:
        self.revision = ""
        """Of what the agent said last; to ask for what is newer."""
        self.endpoints: dict[int, Endpoint] = {}
        self._devices: dict[int, int] = {}
        self._rules: dict[int, str] = {}
        self._pods: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._dns: dict[str, tuple[float, dict[str, set[int]]]] = {}
        """Address -> (until when, name -> the endpoints that have learned it)."""

    def learn(self, told: Mapping[str, Any]) -> None:
        """The agent's answer to `names` (netstack.agent.report.names)."""
        self.revision = told["revision"]
        _merge(
            self.endpoints,
            {item["id"]: _endpoint(item["pod"], item["address"], item) for item in told["endpoints"]},
        )
        its = told.get("host")  # the node itself, while policies select it; an older agent says nothing of it
        if its:
            _merge(self.endpoints, {its["id"]: _endpoint("", "", its)})
        _merge(self._rules, {int(number): text for number, text in told["rules"].items()})
        self._devices = {item["ifindex"]: item["id"] for item in told["endpoints"]}
        self._pods, self._nodes = dict(told["pods"]), dict(told["nodes"])

    def unknown(self, addresses: Iterable[str], now: float) -> list[str]:
        """Those of which the DNS proxy should be asked: not the cluster's, and not asked of late."""
        self._dns = {address: entry for address, entry in self._dns.items() if entry[0] > now}
        known = (self._pods, self._nodes, self._dns)
        return sorted({text for text in addresses if not any(text in table for table in known)})

    def learn_dns(self, asked: Iterable[str], told: Iterable[Mapping[str, Any]], now: float) -> None:
        """The DNS proxy's answer to `names` of these addresses."""
        found: dict[str, dict[str, set[int]]] = {address: {} for address in asked}
        for item in told:
            for name in item["names"]:
                found.setdefault(item["address"], {}).setdefault(name.removesuffix("."), set()).add(item["endpoint"])
        self._dns |= {address: (now + DNS_LIFE_S, names) for address, names in found.items()}

    def endpoint_at(self, ifindex: int) -> int:
        """The endpoint behind a device; 0 if it is no pod's."""
        return self._devices.get(ifindex, 0)

    def rule(self, number: int) -> str:
        """The object and field of a rule; "" for number 0."""
        return self._rules.get(number, f"rule {number}") if number else ""

    def pod(self, address: str) -> str:
        """`namespace/name` of the pod that has the address now, or ""."""
        return self._pods.get(address, "")

    def node(self, address: str) -> str:
        """Name of the node that has the address, or ""."""
        return self._nodes.get(address, "")

    def dns(self, address: str) -> tuple[str, ...]:
        """Every name that pods of this node have learned for the address."""
        return tuple(sorted(self._dns[address][1])) if address in self._dns else ()

    def learned(self, endpoint: int, address: str) -> tuple[str, ...]:
        """The names among these that this endpoint has learned itself: policies know no others."""
        return tuple(name for name in self.dns(address) if endpoint in self._dns[address][1][name])


def _endpoint(pod: str, address: str, told: Mapping[str, Any]) -> Endpoint:
    return Endpoint(pod, address, tuple(told["policies"]), tuple(told["on_trial"]), told["denies"])


def _merge(known: dict[int, Any], new: Mapping[int, Any]) -> None:
    """`new` last, so that the oldest of what is gone goes first."""
    for number in new:
        known.pop(number, None)
    for number in list(known)[: max(0, len(known) - REMEMBERED)]:
        del known[number]
    known.update(new)
